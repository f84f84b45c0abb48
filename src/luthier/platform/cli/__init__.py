"""What every command shares: options, answers, progress."""
