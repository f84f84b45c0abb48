"""Migrations of the database: one file a change in versions/, never edited after it was released."""
