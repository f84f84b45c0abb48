"""What follows from people's ratings: who reads, how far they agree, and which system they prefer."""
