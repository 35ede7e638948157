"""Checking a set-up (``doctor``), connecting projects to the server (``connect``), and the plan for a GPU."""
