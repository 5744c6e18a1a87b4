"""A single HTML page of all tables, that needs neither a network nor other files."""

from convrepro.report.html.page import Entry, render_page

__all__ = ["Entry", "render_page"]
