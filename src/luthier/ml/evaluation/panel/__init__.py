"""Figures from people's ratings: which raters read carefully, how far they agree, and which system they prefer."""
