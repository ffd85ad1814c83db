// Draws the charts of the page in the page's own colours, and draws them anew for dark, light, print and width.
(() => {
  "use strict";
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const places = Array.from(document.querySelectorAll("[data-figure]"));
  if (!places.length) return;
  const config = {
    displaylogo: false,
    displayModeBar: "hover",
    responsive: true,
    modeBarButtons: [["toImage", "resetScale2d"]],
    toImageButtonOptions: { scale: 2 },
  };
  const PRINT_WIDTH = 660;

  function role(name, light) {
    const scope = document.documentElement;
    if (light) scope.classList.add("light");
    const value = getComputedStyle(scope).getPropertyValue("--" + name).trim();
    if (light) scope.classList.remove("light");
    return value;
  }

  // Only keys that hold colours are looked at: a text of the data that starts with @ stays as it is.
  function painted(value, light, key = "") {
    if (typeof value === "string") {
      return /color$/.test(key) && value.startsWith("@") ? role(value.slice(1), light) : value;
    }
    if (Array.isArray(value)) return value.map((item) => painted(item, light, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, painted(item, light, name)]));
    }
    return value;
  }

  function draw(place, printing) {
    const figure = painted(figures[place.dataset.figure], printing);
    figure.layout.font.family = getComputedStyle(document.body).fontFamily;
    const columns = place.closest(".pair") ? 2 : 1;
    if (printing) figure.layout.width = PRINT_WIDTH / columns;
    else figure.layout.autosize = true;
    // A phone should scroll when a finger moves over a chart.
    if (matchMedia("(pointer: coarse)").matches) figure.layout.dragmode = false;
    window.Plotly.react(place, figure.data, figure.layout, config);
  }

  // A point that stands for a row opens it among the examples.
  function listen(place) {
    place.on("plotly_click", (event) => {
      const row = event.points[0].customdata;
      if (typeof row === "number") document.dispatchEvent(new CustomEvent("pursuit-row", { detail: row }));
    });
  }

  const drawAll = (printing) => places.forEach((place) => draw(place, printing));

  function say(message) {
    places.forEach((place) => {
      place.textContent = message + " The numbers are in the table below the chart.";
      place.classList.add("undrawn");
    });
  }

  async function library() {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  async function start() {
    if (typeof DecompressionStream === "undefined") {
      say("Charts need a browser of 2023 or later.");
      return;
    }
    try {
      await library();
      places.forEach((place) => place.replaceChildren());
      drawAll(false);
      places.forEach(listen);
    } catch (error) {
      say("The charts could not be drawn (" + error.message + ").");
      return;
    }
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll(false));
    addEventListener("beforeprint", () => drawAll(true));
    addEventListener("afterprint", () => drawAll(false));
    document.documentElement.dataset.charts = "drawn";
  }

  start();
})();
