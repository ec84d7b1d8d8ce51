"""Rendering: terminal, HTML pages, model card, charts."""
