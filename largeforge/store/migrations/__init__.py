"""How the tables came to be: one file per step under versions/, taken by `largeforge.store.base` when a store is opened."""
