"""Stored generations, and the engines that write them."""
