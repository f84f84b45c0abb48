"""The glossary: the words of the pages, as a page and a command."""
