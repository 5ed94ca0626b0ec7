"""The paper's figures, drawn from tidy tables only: nothing here needs a tensor or a model."""
