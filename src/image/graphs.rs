// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The graphs of a recorder by number, and which of them refer to one that was forgotten.

use super::recorder::RecordedGraph;
use crate::error::Result;
use crate::page::AddressRange;
use crate::sys::heap;
use std::collections::HashMap;
use std::sync::Arc;

/// So few places of forgotten graphs are kept, however little is recorded.
const FEW: usize = 64;

/// Where a graph had a segment that was forgotten.
#[derive(Debug)]
struct Forgotten {
    range: AddressRange,
    name: Arc<String>,
    /// The graph that was recorded last by then: later ones refer to what came to be there.
    last: u64,
}

/// What is recorded. To look for what refers to a graph takes a look at all others, so this is done for as many
/// forgotten ones at once as there are graphs and references, and before a file is written.
#[derive(Debug, Default)]
pub(super) struct Graphs {
    recorded: HashMap<u64, RecordedGraph>,
    /// How many segments they have.
    segments: usize,
    /// How many imports and references they have.
    references: usize,
    /// What graphs have not been searched for yet, in the order in which it was forgotten. It has room for all
    /// segments that are recorded, so that none fails to be forgotten.
    forgotten: Vec<Forgotten>,
}

impl Graphs {
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn add(&mut self, graph: RecordedGraph) -> Result<()> {
        let segments = self.segments + graph.segments.len();
        let room = self.forgotten.try_reserve(segments);
        let room = room.and_then(|()| self.recorded.try_reserve(1));
        room.map_err(|_| heap::exhausted("record a graph"))?;
        self.segments = segments;
        self.references += graph.references();
        self.recorded.insert(graph.number, graph);
        Ok(())
    }

    /// Takes one out to which none can refer.
    pub(super) fn take(&mut self, number: u64) -> Option<RecordedGraph> {
        let graph = self.recorded.remove(&number)?;
        self.segments -= graph.segments.len();
        self.references -= graph.references();
        Some(graph)
    }

    /// Forgets one, when `last` is the graph that was recorded last. False if it is not there.
    pub(super) fn forget(&mut self, number: u64, last: u64) -> bool {
        let Some(gone) = self.take(number) else {
            return false;
        };
        let name = Arc::new(gone.name);
        let places = gone.segments.iter().map(|segment| Forgotten {
            range: segment.range,
            name: Arc::clone(&name),
            last,
        });
        self.forgotten.extend(places);
        if self.recorded.is_empty() {
            self.forgotten.clear();
        } else if self.forgotten.len() > FEW.max(self.references).max(self.recorded.len()) {
            // Without memory for it they are kept until the next one is forgotten.
            let _ = self.settle();
        }
        true
    }

    /// Notes which graphs refer to what was forgotten.
    fn settle(&mut self) -> Result<()> {
        let graphs = self.in_order()?;
        let refer = self.refer_to_forgotten(&graphs)?;
        let numbers = graphs.iter().map(|graph| graph.number);
        let mut noted = heap::room_for(graphs.len(), "forget a graph")?;
        noted.extend(numbers.zip(refer));
        for (number, name) in noted {
            if let Some(graph) = self.recorded.get_mut(&number) {
                graph.refers_to_forgotten = name;
            }
        }
        self.forgotten.clear();
        Ok(())
    }

    /// All that are recorded, in the order in which they were.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn in_order(&self) -> Result<Vec<&RecordedGraph>> {
        let mut graphs = heap::room_for(self.recorded.len(), "store an image")?;
        graphs.extend(self.recorded.values());
        graphs.sort_unstable_by_key(|graph| graph.number);
        Ok(graphs)
    }

    /// For each of these graphs the name of the first one that it refers to and that was forgotten behind it.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn refer_to_forgotten(
        &self,
        graphs: &[&RecordedGraph],
    ) -> Result<Vec<Option<Arc<String>>>> {
        let mut refer = heap::room_for(graphs.len(), "store an image")?;
        refer.extend(graphs.iter().map(|graph| graph.refers_to_forgotten.clone()));
        if self.forgotten.is_empty() {
            return Ok(refer);
        }
        // A reference may be a distance from one place to another one.
        let mut targets = heap::room_for(2 * self.references, "store an image")?;
        for (index, graph) in graphs.iter().enumerate() {
            if refer[index].is_none() {
                targets.extend(graph.targets().map(|target| (target, index)));
            }
        }
        targets.sort_unstable();
        targets.dedup();
        steps::add(graphs.len() + targets.len());
        for gone in &self.forgotten {
            let first = targets.partition_point(|(target, _)| *target < gone.range.start());
            let inside = targets[first..].iter();
            for &(_, index) in inside.take_while(|(target, _)| *target < gone.range.end()) {
                steps::add(1);
                if graphs[index].number <= gone.last {
                    refer[index].get_or_insert_with(|| Arc::clone(&gone.name));
                }
            }
        }
        Ok(refer)
    }
}

/// How many graphs and references were looked at.
mod steps {
    #[cfg(test)]
    thread_local!(pub(super) static TAKEN: std::cell::Cell<usize> = const { std::cell::Cell::new(0) });

    #[cfg(test)]
    pub(super) fn add(count: usize) {
        TAKEN.set(TAKEN.get() + count);
    }

    #[cfg(not(test))]
    pub(super) fn add(_: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::Protection;
    use crate::image::plan::plan;
    use crate::image::{Graph, GraphSegment, Import, Key, RecordedId, Recorder, ReferenceKind};
    use crate::manager::Segment;

    const OUTSIDE: u64 = 0x7000_0000_0000;

    /// Records a graph of one segment that is nothing but pointers. One to 0 is none.
    fn record(recorder: &mut Recorder, name: &str, address: u64, pointers: &[u64]) -> RecordedId {
        let content: Vec<u8> = pointers.iter().flat_map(|to| to.to_le_bytes()).collect();
        let import = |(index, to): (usize, &u64)| (address + 8 * index as u64, format!("{to:#x}"));
        let references = pointers.iter().enumerate().filter(|(_, to)| **to != 0);
        let slots: Vec<_> = references.map(import).collect();
        let imports: Vec<_> = (slots.iter())
            .map(|(slot, symbol)| Import {
                slot: *slot,
                symbol,
                addend: 0,
                kind: ReferenceKind::Absolute64,
            })
            .collect();
        let segment = Segment::new(Protection::READ, content.len() as u64);
        let graph = Graph {
            name,
            segments: &[GraphSegment {
                address,
                segment,
                content: &content,
            }],
            imports: &imports,
            ..Graph::default()
        };
        recorder.record(&graph).unwrap()
    }

    fn refused(recorder: &Recorder) -> Option<String> {
        let error = plan(&recorder.graphs, &Key::default()).err()?;
        Some(error.message().to_owned())
    }

    /// What is looked at while a session ends, for each pointer, or graph without pointers.
    fn steps_of_an_end(graphs: u64, refer: bool) -> usize {
        const POINTERS: u64 = 20;
        let mut recorder = Recorder::default();
        let place = |graph: u64| 0x10_0000 + graph * POINTERS * 8;
        let recorded: Vec<_> = (0..graphs)
            .map(|graph| {
                // Some lie in others.
                let to = |index| match index % 2 {
                    _ if !refer => 0,
                    0 => place((graph + index) % graphs),
                    _ => OUTSIDE + index,
                };
                let pointers: Vec<_> = (0..POINTERS).map(to).collect();
                record(&mut recorder, "one of many", place(graph), &pointers)
            })
            .collect();
        steps::TAKEN.set(0);
        for graph in recorded {
            recorder.forget(graph).unwrap();
        }
        steps::TAKEN.get() / (graphs * if refer { POINTERS } else { 1 }) as usize
    }

    #[test]
    fn to_forget_a_graph_takes_no_longer_where_there_are_more() {
        for refer in [true, false] {
            let [few, many] = [500, 4000].map(|graphs| steps_of_an_end(graphs, refer));
            assert!(many <= few.max(2), "{few} and {many}, {refer}");
        }
    }

    #[test]
    fn the_first_graph_that_was_there_is_named_however_many_have_gone() {
        const PLACE: u64 = 0x10_0000;
        for others in [0, 10 * FEW as u64] {
            let mut recorder = Recorder::default();
            let first = record(&mut recorder, "first", PLACE, &[OUTSIDE]);
            let refers = record(&mut recorder, "refers", 0x20_0000, &[PLACE, OUTSIDE]);
            recorder.forget(first).unwrap();
            let second = record(&mut recorder, "second", PLACE, &[OUTSIDE]);
            for other in 0..others {
                let at = 0x30_0000 + 8 * (other % 3);
                let other = record(&mut recorder, "other", at, &[OUTSIDE]);
                recorder.forget(other).unwrap();
            }
            let later = record(&mut recorder, "later", 0x40_0000, &[PLACE]);
            let message = refused(&recorder).unwrap();
            let says = "graph \"refers\": it refers to graph \"first\", which was forgotten";
            assert!(message.contains(says), "{message}");
            recorder.forget(refers).unwrap();
            assert_eq!(refused(&recorder), None);
            recorder.forget(second).unwrap();
            let message = refused(&recorder).unwrap();
            let says = "graph \"later\": it refers to graph \"second\", which was forgotten";
            assert!(message.contains(says), "{message}");
            recorder.forget(later).unwrap();
            assert_eq!(refused(&recorder), None);
        }
    }

    #[test]
    fn what_has_gone_takes_no_more_memory_than_what_is_there() {
        let mut recorder = Recorder::default();
        record(&mut recorder, "stays", 0x10_0000, &[OUTSIDE; 100]);
        for other in 0..10_000 {
            let at = 0x1000_0000 + 8 * other;
            let other = record(&mut recorder, "other", at, &[OUTSIDE]);
            recorder.forget(other).unwrap();
        }
        let graphs = &recorder.graphs;
        assert_eq!((graphs.segments, graphs.references), (1, 100));
        assert!(graphs.forgotten.capacity() < 400);
    }
}
