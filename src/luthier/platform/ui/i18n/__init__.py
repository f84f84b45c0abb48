"""Pages in other languages than English: catalogs, languages of requests, templates and figures."""
