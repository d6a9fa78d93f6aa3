//! Numbered places, so that what is listed under many keys is kept once and is
//! reached by its number, without a search.

use imbl::Vector;

/// Number of a place. Numbers are given anew, so they mean nothing outside of
/// the derived index; two replicas may number the same things differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot(u32);

/// Things by number.
#[derive(Debug, Clone)]
pub(super) struct Slots<T: Clone> {
    places: Vector<Option<T>>,
    /// Places that hold nothing.
    free: Vector<Slot>,
}

impl<T: Clone> Default for Slots<T> {
    fn default() -> Self {
        Self { places: Vector::new(), free: Vector::new() }
    }
}

impl<T: Clone> Slots<T> {
    /// Keeps a thing and gives its number.
    pub(super) fn add(&mut self, thing: T) -> Slot {
        if let Some(slot) = self.free.pop_back() {
            self.set(slot, thing);
            return slot;
        }
        let slot = Slot(u32::try_from(self.places.len()).expect("memory ends before 2^32 things"));
        self.places.push_back(Some(thing));
        slot
    }

    /// Replaces a thing.
    pub(super) fn set(&mut self, slot: Slot, thing: T) {
        if let Some(place) = self.places.get_mut(slot.0 as usize) {
            *place = Some(thing);
        }
    }

    /// Gives up a thing and its number.
    pub(super) fn remove(&mut self, slot: Slot) {
        if let Some(place) = self.places.get_mut(slot.0 as usize)
            && place.take().is_some()
        {
            self.free.push_back(slot);
        }
    }

    /// The thing at a number.
    pub(super) fn get(&self, slot: Slot) -> Option<&T> {
        self.places.get(slot.0 as usize)?.as_ref()
    }

    /// How many things there are.
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }
}
