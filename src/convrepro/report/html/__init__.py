"""A single HTML page of all tables. The page needs no network and no other files."""

from convrepro.report.html.measurements import coverage_part, speed_part
from convrepro.report.html.page import Entry, render_page

__all__ = ["Entry", "coverage_part", "render_page", "speed_part"]
