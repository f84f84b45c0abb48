"""Files as they come: bounded reading, text encodings, archives, CSV, Excel, Parquet."""
