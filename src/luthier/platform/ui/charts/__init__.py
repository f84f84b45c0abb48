"""Charts of the pages: specified once, drawn as SVG by the server and by ECharts where scripts run."""
