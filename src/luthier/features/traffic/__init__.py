"""Requests and answers of deployed models: recorded, counted, stored or deleted."""
