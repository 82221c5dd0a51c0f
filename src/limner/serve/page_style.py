"""How the page looks. Fonts are the visitor's own: nothing is fetched from elsewhere."""

from __future__ import annotations

from typing import Any

HEAD = """
<meta name="description" content="Portraits of a person from photos and a sentence.">
<meta name="robots" content="noindex">
"""

CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
.gradio-container h1 { font-size: 1.9rem; font-weight: 650; letter-spacing: -0.02em; margin: 0.2rem 0 0; }
.limner-lead { margin: 0.1rem 0 0; }
#facts { margin-top: -8px; }
.limner-lead, .limner-said, .limner-consent, .limner-model { color: var(--body-text-color-subdued); }
.limner-model { margin: 0; font-size: 0.9rem; }
.limner-said { margin: 0; padding: 0.5rem 0; }
.limner-consent { margin: 0; font-size: 0.85rem; line-height: 1.45; }
.limner-empty { min-height: 340px; display: grid; place-items: center; padding: 1rem; text-align: center;
  border: 1px dashed var(--border-color-primary); border-radius: 8px; color: var(--body-text-color-subdued); }
.limner-alert, .limner-remarks { padding: 0.7rem 0.9rem; border-radius: 6px; border-left: 4px solid;
  line-height: 1.45; }
.limner-alert { border-color: #c0392b; background: color-mix(in srgb, #c0392b 10%, transparent); }
.limner-remarks { border-color: #b7791f; background: color-mix(in srgb, #b7791f 10%, transparent);
  font-size: 0.9rem; }
.limner-alert + .limner-alert, .limner-alert + .limner-remarks { margin-top: 0.5rem; }
.limner-alert p { margin: 0.25rem 0 0; overflow-wrap: anywhere; }
.limner-remarks ul { margin: 0; padding-left: 1.1rem; list-style: disc; }
.limner-progress p { margin: 0 0 0.5rem; font-variant-numeric: tabular-nums; }
.limner-bar { height: 10px; border-radius: 5px; overflow: hidden; background: var(--border-color-primary); }
.limner-fill { display: block; height: 100%; background: var(--color-accent); transition: width 0.2s; }
.limner-moving { width: 30%; animation: limner-move 1.4s ease-in-out infinite alternate; }
@keyframes limner-move { from { margin-left: 0; } to { margin-left: 70%; } }
@media (prefers-reduced-motion: reduce) { .limner-moving { animation: none; width: 100%; opacity: 0.4; } }
.limner-preview { display: block; margin: 1rem auto 0; width: min(100%, 384px); border-radius: 8px; }
.limner-facts { width: 100%; border-collapse: collapse; font-size: 0.9rem; }
.limner-facts tr { border: 0 !important; }
.limner-facts th, .limner-facts td { border: solid var(--border-color-primary) !important;
  border-width: 0 0 1px !important; padding: 0.3rem 0.9rem 0.3rem 0 !important;
  text-align: left; vertical-align: top; }
.limner-facts th { font-weight: 600; white-space: nowrap; width: 1%; }
.limner-facts td { overflow-wrap: anywhere; }
#faces .grid-wrap, #gallery .grid-wrap { height: auto !important; min-height: 0 !important;
  max-height: none !important; }
#faces .grid-container, #gallery .grid-container { padding-top: 1.9rem; }
#faces .grid-container { grid-template-columns: repeat(auto-fill, minmax(88px, 104px)); }
#faces .thumbnail-item, #gallery .thumbnail-item { aspect-ratio: auto; display: flex; flex-direction: column; }
#faces .thumbnail-item img { aspect-ratio: 1; }
#gallery .thumbnail-item img { height: auto; image-rendering: auto; }
#faces .caption-label, #gallery .caption-label { position: static; max-width: 100%; width: 100%; border: 0;
  border-radius: 0; text-align: center; overflow: visible; white-space: normal; font-size: 0.8rem; }
.block:not(:focus-within) ul.option-list { display: none; }
#canvas { padding: 0; }
#canvas img { width: auto; max-width: 100%; max-height: 420px; touch-action: manipulation; }
button:focus-visible, a:focus-visible, input:focus-visible, textarea:focus-visible, [tabindex]:focus-visible {
  outline: 3px solid var(--color-accent) !important; outline-offset: 2px; }
@media (max-width: 640px) {
  .gradio-container main { padding: 0.75rem !important; }
  #paint, #stop, #again-run, #again-take { min-height: 48px; }
  .limner-empty { min-height: 120px; }
}
"""


def theme() -> Any:
    """Quiet colours, the visitor's own fonts."""
    import gradio as gr

    quiet = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="stone",
        radius_size="md",
        font=["system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )
    return quiet.set(  # darker than gradio's own, which is too pale to read
        color_accent="*primary_700",
        slider_color="*primary_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
    )
