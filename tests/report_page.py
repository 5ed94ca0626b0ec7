"""The HTML report as a reader gets it: what its file holds, and what a browser shows."""

import base64
import json
import re
import shutil
import subprocess
from html import unescape

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# Goes through all categories and opens what each row of their lists offers, as a reader would.
PROBE = """<script>(async () => {
  const settle = () => new Promise(done => setTimeout(done, 200));
  for (let wait = 0; !app && wait < 50; wait++) await settle();
  const seen = {landing: document.querySelector("#app").innerText, cut: []};
  const look = async category => {
    app.setView({navbarMode: "menu"});
    await settle();
    app.showCategory(category);
    await settle();
    for (const row of document.querySelectorAll("nav tbody tr")) {
      const eye = row.querySelector("a"), label = row.cells[0].innerText;
      if (eye.download) { seen[label] = eye.download; continue; }
      eye.click();
      await settle();
      const shown = document.querySelector("#app > div > div:last-child img, #app iframe");
      for (let wait = 0; shown.complete === false && wait < 50; wait++) await settle();
      seen[label] = shown.naturalWidth ?? "page";
      const frame = shown.closest(".overflow-auto"), corner = shown.getBoundingClientRect();
      const edge = frame.getBoundingClientRect();
      if (corner.top < edge.top || corner.left < edge.left) seen.cut.push(label);
    }
  };
  try {
    for (const category of Object.keys(categories)) await look(category);
  } catch (error) {
    seen.error = String(error);
  }
  const result = document.createElement("pre");
  result.id = "seen";
  result.textContent = JSON.stringify(seen);
  document.body.append(result);
})()</script>"""


def read(path):
    """Variables that the report's page holds: `results`, `categories`, `workflow_desc`."""
    text = path.read_text(encoding="utf-8")
    assert not re.search(r'<(script|link|img)[^>]*(src|href)="https?:', text), "not self-contained"
    names = ("results", "categories", "workflow_desc")
    ids = [name.replace("_", "-") for name in names]
    pattern = r'<script id="{}">\s*var \w+ = (.*);\n'
    values = [json.loads(re.search(pattern.format(i), text)[1]) for i in ids]
    return dict(zip(names, values, strict=True))


def content(entry):
    """The bytes of a result's file."""
    return base64.b64decode(entry["data_uri"].split("base64,")[1])


def seen(path):
    """What Chromium shows: `landing` text, and for each label a width, `page` or a file's name.

    And `cut`, the labels whose top or left no scrolling brings into the window.
    """
    probe = path.with_name("probe.html")
    before, end, after = path.read_text("utf-8").rpartition("</body>")
    probe.write_text(before + PROBE + end + after, "utf-8")
    still = ("quic", "background-networking", "component-update", "sync", "gpu")
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--no-first-run"),
        *(f"--disable-{part}" for part in still),
        f"--user-data-dir={path.with_name('chromium')}",
        *("--window-size=1400,900", "--virtual-time-budget=60000", "--dump-dom", probe.as_uri()),
    ]
    page = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(unescape(re.search(r'<pre id="seen">(.*?)</pre>', page, re.DOTALL)[1]))
