"""What every page shares: shell, forms, charts."""
