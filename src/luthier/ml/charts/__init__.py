"""What every report page shares: its style, its charts as SVG, figures as text, and how a page reaches the disk."""
