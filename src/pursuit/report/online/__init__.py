"""The page of a training that chose from its batches: what was kept, what it looked like, what it cost and saved."""

from pursuit.report.online.data import OnlineData, logged_steps
from pursuit.report.online.page import online_page, write_online

__all__ = ["OnlineData", "logged_steps", "online_page", "write_online"]
