"""Losses, schedules and guidance shared by training and sampling."""
