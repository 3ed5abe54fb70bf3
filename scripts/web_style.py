"""How the page looks."""

from __future__ import annotations

from html import escape

import gradio as gr

from scripts.web_video import Limits

PLACEHOLDER = """
<div class="placeholder"><div class="mark"><i></i><i></i><i></i></div>
<p>Each sentence gets its own colour, and one mask in every frame.</p></div>
"""

CSS = """
.gradio-container { width: 100%; max-width: 1320px !important; margin: 0 auto !important; }
.gradio-container main, .gradio-container .wrap { width: 100%; max-width: none !important; }
.heading h1 { font-size: 1.7rem; font-weight: 700; margin: .6rem 0 .2rem; letter-spacing: -.01em; }
.heading p { color: var(--body-text-color-subdued); margin: 0 0 .3rem; max-width: 60rem; }
.html-container { padding: 0 !important; }
.card { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: .7rem .9rem;
  background: var(--background-fill-primary); line-height: 1.45; overflow-wrap: anywhere; }
.card small { color: var(--body-text-color-subdued); }
.card.video { display: flex; gap: .8rem; align-items: center; }
.card.video img { flex: none; width: 96px; max-height: 96px; margin: 0; border-radius: 6px;
  object-fit: contain; background: #16161a; }
.card.error { border-color: #d92c4a; border-left-width: 5px; background: color-mix(in srgb, #d92c4a 9%, transparent); }
.card.note { border-left: 5px solid #3b82c4; }
.bar { height: 8px; border-radius: 4px; background: var(--border-color-primary); margin-top: .5rem; overflow: hidden; }
.bar i { display: block; height: 100%; background: rgb(225, 20, 125); transition: width .25s; }
.picture { display: block; width: 100%; max-height: 75vh; object-fit: contain; margin: 0 auto; border-radius: 8px; }
.scores { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: .7rem; }
.score p { margin: 0; } .score p i { display: inline-block; width: .85em; height: .85em; border-radius: 3px;
  margin-right: .5em; background: var(--own); outline: 1px solid #0005; }
.score svg { width: 100%; height: 40px; margin: .4rem 0; background: var(--background-fill-secondary);
  border-radius: 5px; overflow: visible; }
.score polyline { fill: none; stroke: var(--body-text-color); stroke-width: 2; vector-effect: non-scaling-stroke; }
.score line { stroke: rgb(225, 20, 125); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
.score .numbers { display: flex; justify-content: space-between; font-variant-numeric: tabular-nums; font-size: .9em; }
.score.nothing { border-style: dashed; } .score.nothing svg { opacity: .45; }
.score .verdict { margin-top: .4rem; color: #c2213f; font-size: .92em; }
.dark .score .verdict { color: #ff8aa0; }
.placeholder { min-height: 380px; border: 2px dashed var(--border-color-primary); border-radius: 14px; display: flex;
  flex-direction: column; align-items: center; justify-content: center; gap: 1rem;
  color: var(--body-text-color-subdued); text-align: center; padding: 1rem; }
.mark { position: relative; width: 150px; height: 96px; border-radius: 10px; background: #24242b; }
.mark i { position: absolute; box-sizing: border-box; border: 3px solid; }
.mark i:nth-child(1) { left: 18px; top: 20px; width: 44px; height: 44px; border-radius: 50%;
  border-color: rgb(255, 45, 150); background: rgb(255 45 150 / .2); }
.mark i:nth-child(2) { left: 78px; top: 42px; width: 40px; height: 34px; border-radius: 5px;
  border-color: rgb(60, 200, 255); background: rgb(60 200 255 / .2); }
.mark i:nth-child(3) { left: 106px; top: 14px; width: 24px; height: 24px; transform: rotate(45deg);
  border-color: rgb(255, 225, 60); background: rgb(255 225 60 / .2); }
"""


def theme() -> gr.themes.Base:
    """Fonts of the visitor's own machine: nothing is fetched from elsewhere."""
    return gr.themes.Base(
        primary_hue="pink",
        neutral_hue="slate",
        font=["system-ui", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"],
        font_mono=["ui-monospace", "DejaVu Sans Mono", "monospace"],
    )


def heading(title: str, notes: list[str], limits: Limits) -> str:
    """Title, model, and what the page takes."""
    takes = (
        f"Up to {limits.seconds:g} s, {limits.frames} frames, {limits.megabytes:g} MB and {limits.sentences} sentences "
        "at a time; files are removed when you leave."
    )
    lines = "".join(f"<p>{escape(line)}</p>" for line in (*notes, takes))
    return f'<div class="heading"><h1>Find objects by sentences</h1><p>{escape(title)}</p>{lines}</div>'
