// What a widget sees of a notebook, in a few lines: traits, and listeners to their changes.
class Model {
  constructor(traits) { this.traits = traits; this.listeners = {}; this.saved = 0; }
  get(name) { return this.traits[name]; }
  set(name, value) {
    if (JSON.stringify(this.traits[name]) === JSON.stringify(value)) return;
    this.traits[name] = value;
    for (const listener of this.listeners[`change:${name}`] ?? []) listener();
  }
  on(event, listener) { (this.listeners[event] ??= []).push(listener); }
  off(event, listener) { this.listeners[event] = this.listeners[event].filter((other) => other !== listener); }
  save_changes() { this.saved += 1; }
  count() { return Object.values(this.listeners).reduce((sum, some) => sum + some.length, 0); }
}
