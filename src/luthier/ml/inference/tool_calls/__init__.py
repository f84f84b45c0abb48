"""Tool calls in the text of an answer: the forms in which models write them, and their readers."""
