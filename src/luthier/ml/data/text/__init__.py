"""Text as such: cleaning, words, languages, toxicity."""
