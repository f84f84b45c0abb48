"""How the database came to be what it is: one file a change in versions/, never edited after it was released."""
