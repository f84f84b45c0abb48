"""Is fine-tuning worth it?"""
