import { chunk } from "lodash-es";
import { createElement, useState } from "react";
import { createRoot } from "react-dom/client";

function Grid() {
  const [width, setWidth] = useState(3);
  const rows = chunk([..."built in a sandbox"], width);
  return createElement(
    "button",
    { onClick: () => setWidth(width + 1) },
    rows.map((row, i) => createElement("div", { key: i }, row.join(" "))),
  );
}

createRoot(document.getElementById("root")).render(createElement(Grid));
