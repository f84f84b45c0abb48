"""Charts of the pages: said once, drawn twice: as SVG by the server, and by ECharts where scripts run."""
