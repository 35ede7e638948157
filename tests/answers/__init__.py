"""Answers that vision-language models give, and what is right about them."""
