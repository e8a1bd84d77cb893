
// Gives every widget of the page its module and its first state. A module is text in the page: a browser loads no
// module from a neighbouring file when the page itself is a file.
const data = JSON.parse(document.getElementById("live").textContent);
const modules = {};
for (const [name, text] of Object.entries(data.modules)) {
  modules[name] = import(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
}
for (const place of document.querySelectorAll("[data-widget]")) {
  const { module, traits } = data.widgets[Number(place.dataset.widget)];
  const { default: widget } = await modules[module];
  await widget.render({ model: new Model(traits), el: place });
  place.dataset.alive = "";
}
