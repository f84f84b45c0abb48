"""The API of the Tinker SDK: clients that write their own training loops, on adapters that share a base model."""
