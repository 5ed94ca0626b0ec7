from l0plane.machine import machine, versions
from l0plane.pages import run_page, to_html

FACTS = {
    "run": "mine",
    "version": "0.1.0",
    "corpus_sha256": "ab12",
    "model_sha256": "cd34",
    "corpus_matches": False,
    "python": "3.11.7",
    "packages": {"torch": "2.13.0"},
    "machine": {"processor": "a fast one", "cores": 2},
    "methods": {
        "topk": {"label": "TopK", "hyperparameters": {"learning_rate": 0.004}},
        "gated": {"label": "Gated", "hyperparameters": {"learning_rate": {"16": 0.1, "64": 0.2}}},
        "relu": {"label": "ReLU", "hyperparameters": {"learning_rate_factor": {"256": 1.4}}},
        "elsewhere": {"label": "A | B", "format": "sparsify"},
    },
    "config": {"seeds": 3, "size_panel": {"n": [512, 1024]}},
}


def test_the_page_about_the_run_has_all_that_tells_runs_apart():
    page = to_html(run_page(FACTS), "mine: run")
    for said in (
        "ab12",
        "cd34",
        "3.11.7",
        "2.13.0",
        "a fast one",
        "learning_rate 0.004",
        "learning_rate 0.1 at L0 16, 0.2 at L0 64",
        "learning_rate_factor 1.4 at n 256",
    ):
        assert said in page
    assert "<strong>no: the text is another one</strong>" in page
    assert "<td>A | B</td>" in page
    assert "size_panel:\n  n: [512, 1024]" in page


def test_markup_in_the_text_is_shown_and_not_obeyed():
    page = to_html("| a |\n| --- |\n| <script>alert(1)</script> |\n", "<b>")
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "<title>&lt;b&gt;</title>" in page


def test_the_machine_is_described_and_not_named():
    import platform

    found = machine()
    assert {"processor", "cores", "vectors", "memory_gb", "system"} <= set(found)
    assert all(found.values())
    assert platform.node() not in map(str, found.values())
    assert {"numba", "torch", "transformer-lens"} <= set(versions())


def test_an_effect_with_its_interval_stays_on_one_line():
    page = to_html("| effect |\n| --- |\n| -2.78 [-2.84, -2.72] |\n| none |\n", "claims")
    assert '<td class="interval">-2.78 [-2.84, -2.72]</td>' in page
    assert "<td>none</td>" in page
