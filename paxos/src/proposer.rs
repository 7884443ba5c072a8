//! The leader's part of a replica: phase 1, adoption of the log that it finds, phase 2, resends.

use crate::heartbeat::Heartbeats;
use crate::interface::Outputs;
use crate::leader::{
    Confirm, Fetch, Leading, Peer, PeerPhase, best_promise, countable, quorum_of, quorum_watermark, source, successor,
    sync_point,
};
use crate::message::{Message, Promise};
use crate::replica::{PIPELINE_SLOTS_MAX, Replica, Role};
use crate::{Ballot, NodeId, Slot, Time};
use bytes::Bytes;
use std::collections::BTreeMap;

/// A candidate that lacks a quorum for so long brings its image to voters that do not know that they are.
const UNINFORMED_MICROS: u64 = 1_500_000;

impl Replica {
    /// Answers to our own ballot. Those to an earlier one are dropped.
    pub(crate) fn receive_as_leader(&mut self, now: Time, from: NodeId, message: Message, out: &mut Outputs) {
        let ballot = message.ballot();
        let first_kept = self.acceptor.log().first_kept();
        match (&mut self.role, message) {
            (Role::Preparing(preparing), Message::Promise(promise))
                if preparing.ballot == ballot && preparing.voters.contains(&from) =>
            {
                preparing.promises.insert(from, promise);
                self.try_adopt(now, out);
            }
            (Role::Preparing(preparing), Message::Fetched { start, entries, .. }) if preparing.ballot == ballot => {
                let Some(fetch) = preparing.fetch.as_mut().filter(|fetch| fetch.from == from) else { return };
                if start != fetch.next() || entries.is_empty() {
                    return;
                }
                let room = (fetch.end.0 + 1).saturating_sub(start.0) as usize;
                fetch.entries.extend(entries.into_iter().take(room));
                preparing.sent_at = now;
                self.continue_fetch(now, out);
            }
            (Role::Leading(leading), Message::Promise(promise)) if leading.ballot == ballot => {
                self.begin_sync(now, from, promise, out);
            }
            (Role::Leading(leading), Message::SyncProgress { staged, .. }) if leading.ballot == ballot => {
                let Some(peer) = leading.peers.get_mut(&from) else { return };
                if let PeerPhase::Syncing { cut, end, next } = peer.phase {
                    let wanted = staged.next().max(cut.next());
                    // An old one, or a duplicate: the piece that it asks for is on its way. To answer each would
                    // set off another exchange each time, and they would multiply. What got lost is noticed by
                    // the silence.
                    if wanted < next {
                        return;
                    }
                    peer.phase = PeerPhase::Syncing { cut, end, next: wanted };
                    peer.moved_at = now;
                    self.send_to(now, from, out);
                }
            }
            (Role::Leading(leading), Message::Accepted { length, decided, .. }) if leading.ballot == ballot => {
                let Some(peer) = leading.peers.get_mut(&from) else { return };
                let next = match peer.phase {
                    PeerPhase::Replicating { next } => next.max(length.next()),
                    PeerPhase::Syncing { end, .. } if length < end => return,
                    PeerPhase::Syncing { .. } | PeerPhase::Probing => length.next(),
                };
                peer.phase = PeerPhase::Replicating { next };
                let further = peer.matched.is_none_or(|matched| matched < length);
                let news = further || peer.decided != decided;
                if further {
                    peer.matched = Some(length);
                    // A peer that needs a snapshot makes no progress by saying so: it is probed in time.
                    if length.next() >= first_kept {
                        peer.moved_at = now;
                    }
                }
                peer.decided = decided;
                let settled = leading.decided;
                self.send_to(now, from, out);
                if !news {
                    // A follower that reports in after a restart wants to hear something.
                    self.send_now(out, from, Message::Decide { ballot, decided: settled, answer: false });
                }
            }
            (Role::Leading(leading), Message::Confirmed { round, .. })
                if leading.ballot == ballot && leading.voters.contains(&from) =>
            {
                let quorum = quorum_of(leading.voters.len());
                let confirm = &mut leading.confirm;
                if round != confirm.begun || confirm.confirmed == confirm.begun {
                    return;
                }
                confirm.acks.insert(from);
                if confirm.acks.len() >= quorum {
                    confirm.confirmed = confirm.begun;
                    if confirm.again {
                        self.step_confirm(now, out);
                    }
                }
            }
            _ => {}
        }
    }

    /// Begins the round that was asked for while another one ran.
    fn step_confirm(&mut self, now: Time, out: &mut Outputs) {
        let me = self.config.me;
        let Role::Leading(leading) = &mut self.role else { return };
        let peers: Vec<NodeId> = leading.voters.iter().copied().filter(|node| *node != me).collect();
        let (begun, confirmed) = (leading.confirm.begun + 1, leading.confirm.confirmed);
        leading.confirm = Confirm { begun, confirmed, sent_at: now, ..Confirm::default() };
        leading.confirm.acks.insert(me);
        let ballot = leading.ballot;
        for peer in peers {
            self.send_now(out, peer, Message::Confirm { ballot, round: begun });
        }
    }

    /// Our own records are durable: our promise counts in phase 1, our vote in phase 2.
    pub(crate) fn own_durable(&mut self, now: Time, promised: Ballot, out: &mut Outputs) {
        let me = self.config.me;
        let promise = self.promise();
        if let Role::Preparing(preparing) = &mut self.role
            && preparing.ballot == promised
        {
            preparing.promises.insert(me, promise);
            self.try_adopt(now, out);
        }
    }

    /// With a quorum of promises, our own among them: fetch the best log, or adopt it.
    fn try_adopt(&mut self, now: Time, out: &mut Outputs) {
        let (me, own) = (self.config.me, self.promise());
        let Role::Preparing(preparing) = &mut self.role else { return };
        let quorum = quorum_of(preparing.voters.len());
        let ready = preparing.promises.contains_key(&me) && countable(&preparing.promises) >= quorum;
        if !ready || preparing.fetch.is_some() {
            return;
        }
        preparing.promises.insert(me, own);
        let Some((best, promise)) = best_promise(&preparing.promises) else { return };
        let cut = if best == me { own.length } else { sync_point(&own, promise.accepted, promise.length) };
        let ballot = preparing.ballot;
        if best != me && cut < promise.length && cut.next() < promise.first_kept {
            // We lag behind what the best log still holds. An image of it may take minutes, and whoever
            // has it can perhaps lead at once. If not, because only we reach a quorum, asking for entries
            // that it lacks brings its image.
            let to = successor(&preparing.promises, (best, promise));
            if let Some(to) = to.filter(|_| !self.gave_way) {
                self.gave_way = true;
                return self.abdicate(now, ballot, to, out);
            }
        }
        let end = promise.length.max(cut);
        preparing.fetch = Some(Fetch { best, from: best, cut, end, entries: Vec::new() });
        self.continue_fetch(now, out);
    }

    /// An image through `slot` was installed while we fetch: what it covers is not asked for any more
    /// (whoever has the rest may have dropped it).
    pub(crate) fn fetch_behind_image(&mut self, now: Time, slot: Slot, out: &mut Outputs) {
        let Role::Preparing(preparing) = &mut self.role else { return };
        let Some(fetch) = preparing.fetch.as_mut().filter(|fetch| fetch.next() <= slot) else { return };
        fetch.cut = slot;
        fetch.entries.clear();
        preparing.sent_at = now;
        self.continue_fetch(now, out);
    }

    fn continue_fetch(&mut self, now: Time, out: &mut Outputs) {
        let Role::Preparing(preparing) = &mut self.role else { return };
        let ballot = preparing.ballot;
        let Some(fetch) = &mut preparing.fetch else { return };
        if fetch.next() <= fetch.end {
            let start = fetch.next();
            let (from, end) = source(&preparing.promises, fetch.best, (start, fetch.end));
            fetch.from = from;
            self.send_now(out, from, Message::Fetch { ballot, start, end });
            return;
        }
        let Some(best) = preparing.promises.get(&fetch.best) else { return };
        let adopted = (best.accepted, fetch.end);
        let (cut, entries) = (fetch.cut, std::mem::take(&mut fetch.entries));
        let promises = std::mem::take(&mut preparing.promises);
        let voters = std::mem::take(&mut preparing.voters);
        self.acceptor.adopt_as_leader(ballot, cut, entries, self.config.piece_bytes_max, &mut out.records);
        let (length, expected) = (self.acceptor.log().length(), adopted.1.max(self.acceptor.decided()));
        assert_eq!(length, expected, "leader of {ballot} adopted a log of another length than phase 1 found");
        self.lead(now, (ballot, voters), adopted, promises, out);
    }

    /// Phase 1 is over. A no-op of our own ballot comes first: once it is applied, everything that
    /// earlier ballots decided is applied too. Not behind a stop-sign: that is only to be decided.
    fn lead(
        &mut self,
        now: Time,
        (ballot, voters): (Ballot, Vec<NodeId>),
        adopted: (Ballot, Slot),
        promises: BTreeMap<NodeId, Promise>,
        out: &mut Outputs,
    ) {
        let decided = self.acceptor.decided();
        self.gave_way = false;
        let (peers, confirm) = (BTreeMap::new(), Confirm::default());
        self.role = Role::Leading(Leading { ballot, adopted, voters, peers, decided, asked: false, confirm });
        self.choose_peers(now);
        out.ping = true;
        self.propose(now, Bytes::new(), out);
        let me = self.config.me;
        for (node, promise) in promises.into_iter().filter(|(node, _)| *node != me) {
            self.begin_sync(now, node, promise, out);
        }
    }

    /// A peer promised our ballot: bring it to our log.
    fn begin_sync(&mut self, now: Time, node: NodeId, promise: Promise, out: &mut Outputs) {
        let first_kept = self.acceptor.log().first_kept();
        let end = self.acceptor.log().length();
        let Role::Leading(leading) = &mut self.role else { return };
        let Some(peer) = leading.peers.get_mut(&node) else { return };
        let stranger = promise.accepted != leading.ballot && matches!(peer.phase, PeerPhase::Replicating { .. });
        if promise.suspect || stranger {
            peer.matched = None;
        } else if peer.phase != PeerPhase::Probing {
            return;
        }
        let cut = if promise.accepted == leading.ballot && !promise.suspect {
            promise.length
        } else {
            sync_point(&promise, leading.adopted.0, leading.adopted.1)
        };
        peer.moved_at = now;
        if cut.next() < first_kept {
            out.snapshot_wanted.push(node);
            return;
        }
        if cut > end {
            // It has had an image of a later configuration meanwhile, whose leader we have not heard of: it needs
            // nothing from us, and counts for nothing here. But nobody has more than its leader of our own ballot.
            let ours = promise.accepted == leading.ballot && !promise.suspect;
            assert!(!ours, "{node} has accepted up to {cut} of {}, beyond its leader's {end}", leading.ballot);
            peer.phase = PeerPhase::Probing;
            return;
        }
        peer.phase = PeerPhase::Syncing { cut, end, next: cut.next() };
        self.send_to(now, node, out);
    }

    /// Appends an entry to our own log and sends it on. Ignored where we do not lead.
    pub(crate) fn propose(&mut self, now: Time, entry: Bytes, out: &mut Outputs) {
        let Role::Leading(leading) = &self.role else { return };
        if self.seal().is_some() {
            return;
        }
        let (ballot, start) = (leading.ballot, self.next_slot());
        let placed = self.acceptor.accept(ballot, start, vec![entry], &mut out.records);
        assert!(placed, "leader of {ballot} cannot accept its own proposal at {start}");
        // Those that are being synchronised get one piece at a time, at their own pace, and this entry behind them.
        let replicating = |peer: &Peer| matches!(peer.phase, PeerPhase::Replicating { .. });
        let peers: Vec<NodeId> =
            leading.peers.iter().filter(|(_, peer)| replicating(peer)).map(|(node, _)| *node).collect();
        for node in peers {
            self.send_to(now, node, out);
        }
    }

    /// Sends a peer what comes next for it, inside its window.
    fn send_to(&mut self, now: Time, node: NodeId, out: &mut Outputs) {
        let log = self.acceptor.log().range();
        let Role::Leading(leading) = &mut self.role else { return };
        let (ballot, decided) = (leading.ballot, leading.decided);
        let Some(peer) = leading.peers.get_mut(&node) else { return };
        let mut messages = Vec::new();
        match peer.phase {
            PeerPhase::Probing => {}
            PeerPhase::Syncing { cut, next, .. } if cut.next() < log.0 || next < log.0 => {
                peer.phase = PeerPhase::Probing;
            }
            PeerPhase::Syncing { cut, end, mut next } => {
                // One piece at a time: SyncProgress asks for the next. An empty one carries the cut.
                if next <= end || next == cut.next() {
                    let entries = self.acceptor.log().piece(next, end, self.config.piece_bytes_max);
                    let start = next;
                    next = Slot(next.0 + entries.len() as u64);
                    messages.push(Message::AcceptSync { ballot, cut, start, end, entries, decided });
                    peer.decided_sent = decided;
                    // Only then: every proposal comes by here, and one that got lost must be missed some time.
                    peer.moved_at = now;
                }
                peer.phase = PeerPhase::Syncing { cut, end, next };
            }
            PeerPhase::Replicating { next } if next < log.0 => {
                // Only a snapshot helps, and the peer has just told where it stands.
                peer.phase = PeerPhase::Probing;
                peer.matched = None;
                out.snapshot_wanted.push(node);
            }
            PeerPhase::Replicating { mut next } => {
                let matched = peer.matched.unwrap_or(Slot(0));
                while next <= log.1 && next.0 - matched.0 <= PIPELINE_SLOTS_MAX {
                    let last = Slot((matched.0 + PIPELINE_SLOTS_MAX).min(log.1.0));
                    let entries = self.acceptor.log().piece(next, last, self.config.piece_bytes_max);
                    let start = next;
                    next = Slot(next.0 + entries.len() as u64);
                    messages.push(Message::Accept { ballot, start, entries, decided });
                    if peer.moved_at < now && start == matched.next() {
                        peer.moved_at = now;
                    }
                    peer.decided_sent = decided;
                }
                peer.phase = PeerPhase::Replicating { next };
            }
        }
        for message in messages {
            self.send_now(out, node, message);
        }
    }

    /// Computes what a quorum has durably accepted.
    pub(crate) fn advance(&mut self, out: &mut Outputs) {
        let Role::Leading(leading) = &mut self.role else { return };
        let quorum = quorum_of(leading.voters.len());
        let own = self.acceptor.vote(leading.ballot);
        let votes = leading.voters.iter().filter_map(|node| leading.peers.get(node)?.matched);
        let mut watermarks: Vec<Slot> = votes.collect();
        watermarks.extend(own);
        if watermarks.len() < quorum {
            return;
        }
        let reached = quorum_watermark(watermarks, quorum);
        leading.decided = leading.decided.max(reached);
        let (ballot, decided) = (leading.ballot, leading.decided);
        out.untold = leading.peers.values().any(|peer| peer.is_untold(decided));
        self.acceptor.announce(ballot, decided);
    }

    /// Tells those peers what is decided who have not heard it with an Accept meanwhile.
    pub(crate) fn tell_decided(&mut self, out: &mut Outputs) {
        let Role::Leading(leading) = &mut self.role else { return };
        let (ballot, decided) = (leading.ballot, leading.decided);
        let mut tell = Vec::new();
        for (node, peer) in &mut leading.peers {
            if peer.is_untold(decided) {
                peer.decided_sent = decided;
                tell.push(*node);
            }
        }
        for node in tell {
            self.send_now(out, node, Message::Decide { ballot, decided, answer: false });
        }
    }

    /// Whatever went unanswered for a while is said again; a peer that needs nothing hears nothing.
    pub(crate) fn resend(&mut self, now: Time, heartbeats: &Heartbeats, out: &mut Outputs) {
        let (me, resend_micros) = (self.config.me, heartbeats.timing().resend_micros);
        let end = self.acceptor.log().length();
        match &mut self.role {
            Role::Follower => {}
            Role::Preparing(preparing) => {
                if now.since(preparing.sent_at) < resend_micros {
                    return;
                }
                preparing.sent_at = now;
                let (ballot, handover) = (preparing.ballot, preparing.handover);
                let promised: Vec<NodeId> = preparing.promises.keys().copied().collect();
                // A promiser that we fetch from may be gone; a fresh choice among fresh promises.
                let asked = preparing.fetch.as_ref().map(|fetch| [fetch.best, fetch.from]);
                let gone = asked.into_iter().flatten().find(|node| *node != me && !heartbeats.reaches(now, *node));
                let stalled = gone.is_some();
                if let Some(gone) = gone {
                    preparing.fetch = None;
                    preparing.promises.remove(&gone);
                }
                let lasts = now.since(preparing.since) >= UNINFORMED_MICROS;
                let voters = preparing.voters.clone();
                for node in self.but_me(&voters).into_iter().filter(|node| !promised.contains(node)) {
                    if self.acceptor.promised() == ballot {
                        self.send_durable(out, node, Message::Prepare { ballot, handover, elected: false });
                    }
                    // Nobody leads the configuration that it is in any more, and it has not heard of ours.
                    let status = heartbeats.status_of(node, self.config.group);
                    if lasts && heartbeats.reaches(now, node) && status.is_some_and(|it| it.config < ballot.config) {
                        out.snapshot_wanted.push(node);
                    }
                }
                if stalled { self.try_adopt(now, out) } else { self.continue_fetch(now, out) }
            }
            Role::Leading(leading) => {
                let ballot = leading.ballot;
                let mut probe = Vec::new();
                let mut again = Vec::new();
                let mut remind = Vec::new();
                let decided = leading.decided;
                for (node, peer) in &mut leading.peers {
                    if now.since(peer.moved_at) < resend_micros || !heartbeats.reaches(now, *node) {
                        continue;
                    }
                    match peer.phase {
                        PeerPhase::Probing => probe.push(*node),
                        PeerPhase::Syncing { .. } => {
                            // It may have restarted and lost what it staged: ask where it stands.
                            peer.phase = PeerPhase::Probing;
                            probe.push(*node);
                        }
                        PeerPhase::Replicating { .. } => {
                            let matched = peer.matched.unwrap_or(Slot(0));
                            if matched < end {
                                peer.phase = PeerPhase::Replicating { next: matched.next() };
                                again.push(*node);
                            } else if peer.decided < leading.decided {
                                remind.push(*node);
                            } else {
                                continue;
                            }
                        }
                    }
                    peer.moved_at = now;
                }
                let confirm = &mut leading.confirm;
                let mut unconfirmed = Vec::new();
                if confirm.confirmed < confirm.begun && now.since(confirm.sent_at) >= resend_micros {
                    confirm.sent_at = now;
                    unconfirmed.extend(leading.peers.keys().filter(|node| !confirm.acks.contains(node)).copied());
                }
                let round = confirm.begun;
                for node in unconfirmed {
                    self.send_now(out, node, Message::Confirm { ballot, round });
                }
                for node in probe {
                    self.send_durable(out, node, Message::Prepare { ballot, handover: None, elected: true });
                }
                for node in remind {
                    self.send_now(out, node, Message::Decide { ballot, decided, answer: true });
                }
                for node in again {
                    self.send_to(now, node, out);
                }
            }
        }
    }
}
