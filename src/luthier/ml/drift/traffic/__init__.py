"""Exchanges on the disk: lines of JSON first, since those survive any end, then Parquet files by day."""
