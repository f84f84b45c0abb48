// The parts of ECharts that the pages draw with, as one file that defines `window.echarts`.
import * as core from "echarts/core";
import { BarChart, CustomChart, LineChart, ParallelChart, ScatterChart } from "echarts/charts";
import {
  AriaComponent, AxisPointerComponent, DataZoomInsideComponent, GridComponent, LegendComponent, MarkAreaComponent,
  MarkLineComponent, MarkPointComponent, ParallelComponent, TooltipComponent, VisualMapComponent,
} from "echarts/components";
import { CanvasRenderer } from "echarts/renderers";

core.use([
  BarChart, CustomChart, LineChart, ParallelChart, ScatterChart,
  AriaComponent, AxisPointerComponent, DataZoomInsideComponent, GridComponent, LegendComponent, MarkAreaComponent,
  MarkLineComponent, MarkPointComponent, ParallelComponent, TooltipComponent, VisualMapComponent, CanvasRenderer,
]);
window.echarts = core;
