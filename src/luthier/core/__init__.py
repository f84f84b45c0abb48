"""The words of the system: frozen specs, states, events, errors and ids. Imports nothing of Luthier's."""
