//! How a client's call reaches a node: as a request in a core's inbox, or, for a read that a lease allows, past
//! it, as the engine's client does.

use crate::sim::client::{Call, ClientId};
use crate::sim::clock::{MS, US};
use crate::sim::cluster::{Cluster, Event};
use crate::sim::node::Node;
use floe::read_cell::Open;
use floe::seam::Input;
use floe_shard::{Request, RequestId};
use std::sync::Arc;

impl Cluster {
    /// A client of this node reads by itself what it may, as the engine's client does, and asks the core
    /// for the rest. Its thread may stand still between the load and the look at the clock.
    pub(crate) fn send_call(&mut self, client: ClientId, node: usize, call: Call) {
        let Node { incarnation, clock, ref process, .. } = self.nodes[node];
        if let (Some(_), Some(process)) = (call.request.view(), process)
            && let Some(answer) = process.cells.read(&call.request, || clock.local(self.queue.now()))
        {
            return self.queue.after(0, Event::Answer(client, Some(answer)));
        }
        let open = match &call.request {
            // A page of a view that another node holds is that node's to read.
            Request::Read { shard, consistency, .. } if call.request.view().is_none() => {
                process.as_ref().and_then(|process| process.cells.load(*shard, *consistency))
            }
            _ => None,
        };
        match open {
            Some(open) => {
                let pause = *self.random.pick(&[0, 0, 0, US, 10 * MS, 400 * MS]);
                let pause = self.random.below(pause + 1);
                let read = Event::ReadHere(node, incarnation, client, Box::new((open, call)));
                self.queue.after(pause, read);
            }
            None => self.ask_core(client, node, call),
        }
    }

    pub(crate) fn read_here(
        &mut self,
        node: usize,
        incarnation: u64,
        client: ClientId,
        (open, call): (Arc<Open>, Call),
    ) {
        let now = self.queue.now();
        if self.nodes[node].process_of(incarnation).is_none() {
            return self.client_answer(client, None);
        }
        let local = self.nodes[node].clock.local(now);
        let answer = match &call.request {
            Request::Read { range_epoch, query, consistency, .. } => {
                open.read(*range_epoch, query, *consistency, local)
            }
            _ => None,
        };
        match answer {
            Some(answer) => {
                let process = self.nodes[node].process.as_ref().expect("it was there right above");
                let answer = process.cells.views.hold_rest(local, None, answer);
                self.found.reads_here += 1;
                self.client_answer(client, Some(answer));
            }
            None => self.ask_core(client, node, call),
        }
    }

    /// Puts a client's request into the inbox of the core that owns the shard.
    fn ask_core(&mut self, client: ClientId, node: usize, call: Call) {
        let now = self.queue.now();
        let Node { incarnation, clock, ref mut process, .. } = self.nodes[node];
        let Some(process) = process else {
            return self.queue.after(MS, Event::Answer(client, None));
        };
        let core = call.request.shard().core(process.cores.len() as u16);
        let state = &mut process.cores[usize::from(core)];
        let id = RequestId(state.request_next);
        state.request_next += 1;
        state.clients.insert(id, client);
        let deadline = clock.local(now) + call.patience_ns;
        let input = Input::Request { id, deadline, park_until: deadline, request: call.request };
        self.input(node, incarnation, core, input);
    }
}
