"""The words of the system: frozen specs, states, events, errors and ids. Imports no other part of Luthier."""
