//! The network to Redis: which pending command is carried out next and when, whether its reply arrives, and when a
//! connection breaks.
//!
//! Commands of one socket are carried out in their order, as in Redis; those of different sockets in any order. A
//! command whose socket breaks may have been carried out.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use samovar::redis::simulated::{Commands, Sent};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::check;
use crate::machine;
use crate::redis::{INBOX, Redis, Word};
use crate::resp;
use crate::world::{Shared, World};

/// The longest time after which a client reconnects when Redis is back.
const RECONNECT: u64 = 1_500;

/// The time within which a worker has another subscription when Redis is there. A subscription that broke ends at once;
/// one that went silent is noticed after four canaries.
const RESUBSCRIBED: Duration = Duration::from_millis(2_500);

type Replies = oneshot::Sender<io::Result<Vec<Vec<u8>>>>;

/// Commands that were sent together, and the replies so far.
struct Batch {
    commands: VecDeque<Vec<Word>>,
    replies: Vec<Vec<u8>>,
    /// `None` for commands of a subscription, each of which is answered by itself.
    to: Option<Replies>,
}

#[derive(Default)]
struct Socket {
    host: String,
    queue: VecDeque<Batch>,
    is_connected: bool,
    /// A step of it is planned.
    is_planned: bool,
    /// Nothing comes back any more.
    is_mute: bool,
    /// It waits for news in the inbox.
    is_blocked: bool,
    /// When its present wait for news ends.
    blocked_until: Option<Duration>,
    /// When the last planned reply arrives: none overtakes another.
    last_reply: Duration,
    subscription: Option<Subscription>,
}

/// The ends of a subscription's stream.
struct Subscription {
    out: mpsc::UnboundedSender<Vec<u8>>,
    reader: AbortHandle,
}

enum Event {
    /// Carries out a socket's next command.
    Step(u64),
    /// Replies arrive.
    Arrive(Replies, io::Result<Vec<Vec<u8>>>),
    /// Something arrives over a subscription.
    Push(u64, Vec<u8>),
    /// A socket's wait for news in the inbox ends at this time.
    Unblock(u64, Duration),
    /// Redis is there again.
    Up,
}

/// Words that a subscription sent, or `None` for its end; passed on by its reader.
type Words = (u64, Option<Vec<Word>>);

/// The network, and Redis behind it.
pub(crate) struct Network {
    shared: Shared,
    pub(crate) redis: Redis,
    sockets: BTreeMap<u64, Socket>,
    /// Sockets that wait for news in the inbox.
    blocked: BTreeSet<u64>,
    order: BinaryHeap<Reverse<(Duration, u64, u64)>>,
    events: BTreeMap<u64, Event>,
    count: u64,
    /// Clients that hear nothing, not even an error.
    never: Vec<Replies>,
    words: mpsc::UnboundedSender<Words>,
    next_subscription: u64,
    /// Workers whose subscription broke, since when.
    unheard: BTreeMap<String, Duration>,
}

/// Runs until a property is violated.
pub(crate) async fn run(
    network: &RefCell<Network>,
    mut sent: mpsc::UnboundedReceiver<Sent>,
    mut words: mpsc::UnboundedReceiver<Words>,
) {
    let shared = network.borrow().shared.clone();
    while shared.lock().violation.is_none() {
        let next = network.borrow().next();
        tokio::select! {
            biased;
            Some(sent) = sent.recv() => network.borrow_mut().send(sent),
            Some(words) = words.recv() => network.borrow_mut().hear(words),
            () = shared.changed.notified() => {}
            () = until(next) => network.borrow_mut().step(),
        }
        // Whoever got a reply goes on.
        tokio::task::yield_now().await;
    }
}

async fn until(time: Option<Duration>) {
    match time {
        Some(time) => {
            let wait = time.saturating_sub(machine::elapsed());
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
        }
        None => std::future::pending().await,
    }
}

impl Network {
    /// Returns the network, and where its subscriptions are heard.
    pub(crate) fn new(shared: Shared, seed: u64) -> (Rc<RefCell<Self>>, mpsc::UnboundedReceiver<Words>) {
        let (words, heard) = mpsc::unbounded_channel();
        let network = Self {
            shared,
            redis: Redis::new(seed),
            sockets: BTreeMap::new(),
            blocked: BTreeSet::new(),
            order: BinaryHeap::new(),
            events: BTreeMap::new(),
            count: 0,
            never: Vec::new(),
            words,
            // Far from the numbers of other sockets.
            next_subscription: 1 << 32,
            unheard: BTreeMap::new(),
        };
        (Rc::new(RefCell::new(network)), heard)
    }

    fn next(&self) -> Option<Duration> {
        self.order.peek().map(|Reverse((at, ..))| *at)
    }

    /// Plans an event. Events of the same time come in a random order.
    fn plan(&mut self, at: Duration, event: Event) {
        self.count += 1;
        let tie = self.shared.lock().random.within(0..=u64::from(u32::MAX));
        self.order.push(Reverse((at, tie, self.count)));
        self.events.insert(self.count, event);
        self.shared.changed.notify_one();
    }

    /// Takes what a client sends.
    fn send(&mut self, sent: Sent) {
        match sent {
            Sent::Commands(Commands { host, socket, commands, replies }) => {
                if self.shared.lock().dead.contains(&host) {
                    return self.never.push(replies);
                }
                let is_up = self.redis.is_up;
                let known = self.sockets.entry(socket).or_insert_with(|| Socket {
                    host,
                    is_connected: is_up,
                    ..Socket::default()
                });
                known.queue.push_back(Batch { commands: commands.into(), replies: Vec::new(), to: Some(replies) });
                self.proceed(socket, false);
            }
            Sent::Subscriber { host, stream } => {
                if self.redis.is_up && !self.shared.lock().dead.contains(&host) {
                    self.open(host, stream);
                }
            }
        }
    }

    fn open(&mut self, host: String, stream: DuplexStream) {
        let number = self.next_subscription;
        self.next_subscription += 1;
        self.unheard.remove(&host);
        let (reading, writing) = tokio::io::split(stream);
        let (out, pushes) = mpsc::unbounded_channel();
        tokio::spawn(write(writing, pushes));
        let reader = tokio::spawn(read(number, reading, self.words.clone())).abort_handle();
        let subscription = Some(Subscription { out, reader });
        self.sockets.insert(number, Socket { host, is_connected: true, subscription, ..Socket::default() });
    }

    /// Takes what a subscription sends, or its end.
    fn hear(&mut self, (number, words): Words) {
        match (words, self.sockets.get_mut(&number)) {
            (Some(words), Some(socket)) => {
                socket.queue.push_back(Batch { commands: [words].into(), replies: Vec::new(), to: None });
                self.proceed(number, false);
            }
            (None, Some(_)) => self.close(number),
            (_, None) => {}
        }
    }

    /// Plans a socket's next step, if it has one.
    fn proceed(&mut self, number: u64, at_once: bool) {
        let Some(socket) = self.sockets.get_mut(&number) else { return };
        if socket.is_planned || socket.is_blocked || socket.queue.is_empty() || !socket.is_connected {
            return;
        }
        socket.is_planned = true;
        let wait = if at_once { Duration::ZERO } else { self.shared.lock().way() };
        self.plan(machine::elapsed() + wait, Event::Step(number));
    }

    /// Carries out the next event.
    fn step(&mut self) {
        let Some(Reverse((_, _, number))) = self.order.pop() else { return };
        match self.events.remove(&number) {
            Some(Event::Step(socket)) => self.step_of(socket),
            Some(Event::Arrive(to, replies)) => {
                let _ = to.send(replies);
            }
            Some(Event::Push(socket, bytes)) => {
                if let Some(Socket { subscription: Some(subscription), .. }) = self.sockets.get(&socket) {
                    let _ = subscription.out.send(bytes);
                }
            }
            Some(Event::Unblock(socket, until)) => self.unblock(socket, until),
            Some(Event::Up) => self.come_up(),
            None => {}
        }
    }

    fn step_of(&mut self, number: u64) {
        let Some(socket) = self.sockets.get_mut(&number) else { return };
        socket.is_planned = false;
        if !socket.is_connected || socket.is_blocked {
            return;
        }
        let (is_cut, is_mute) = self.shared.lock().breaks();
        if is_cut {
            return self.cut(number);
        }
        if is_mute && socket.subscription.is_none() && !socket.is_mute {
            socket.is_mute = true;
            let host = socket.host.clone();
            self.shared.tell(format!("network    {host}/{number} falls silent"));
        }
        self.carry_out(number);
        self.proceed(number, true);
    }

    /// Carries out a socket's next command, and plans its reply.
    fn carry_out(&mut self, number: u64) {
        let Some(socket) = self.sockets.get_mut(&number) else { return };
        let Some(batch) = socket.queue.front_mut() else { return };
        if let Some(words) = batch.commands.front() {
            let mut words = words.clone();
            let block = take_block(&mut words);
            let reply = self.redis.execute(&self.shared, &socket.host, number, &words);
            if let Some(time) = block
                && resp::is_nil(&reply)
            {
                // A reader that was woken in vain does not wait for longer.
                let until = *socket.blocked_until.get_or_insert_with(|| machine::elapsed() + time);
                socket.is_blocked = true;
                self.blocked.insert(number);
                self.plan(until, Event::Unblock(number, until));
                return self.after(&[]);
            }
            socket.blocked_until = None;
            batch.commands.pop_front();
            if batch.to.is_some() || !reply.is_empty() {
                batch.replies.push(reply);
            }
            let is_done = batch.commands.is_empty();
            if is_done {
                self.reply(number);
            }
            self.after(&words);
        }
    }

    /// Ends a wait for news in the inbox that was in vain.
    fn unblock(&mut self, number: u64, until: Duration) {
        let Some(socket) = self.sockets.get_mut(&number) else { return };
        if socket.is_blocked && socket.blocked_until == Some(until) {
            (socket.is_blocked, socket.blocked_until) = (false, None);
            self.blocked.remove(&number);
            if let Some(batch) = socket.queue.front_mut() {
                batch.commands.pop_front();
                batch.replies.push(resp::NIL.to_vec());
            }
            self.reply(number);
            self.proceed(number, true);
        }
    }

    /// Plans the arrival of a batch's replies.
    fn reply(&mut self, number: u64) {
        let Some(socket) = self.sockets.get_mut(&number) else { return };
        let Some(batch) = socket.queue.pop_front() else { return };
        let at = (machine::elapsed() + self.shared.lock().way()).max(socket.last_reply);
        socket.last_reply = at;
        let is_mute = socket.is_mute;
        match batch.to {
            Some(to) if is_mute => self.never.push(to),
            Some(to) => self.plan(at, Event::Arrive(to, Ok(batch.replies))),
            None => {
                for bytes in batch.replies {
                    self.plan(at, Event::Push(number, bytes));
                }
            }
        }
    }

    /// Passes on what subscribers are sent, wakes readers that wait for the inbox, and checks the properties.
    fn after(&mut self, words: &[Word]) {
        for (number, bytes) in self.redis.pushes() {
            let Some(socket) = self.sockets.get_mut(&number) else { continue };
            let at = (machine::elapsed() + self.shared.lock().way()).max(socket.last_reply);
            socket.last_reply = at;
            self.plan(at, Event::Push(number, bytes));
        }
        if words.iter().any(|word| word == INBOX) {
            for number in std::mem::take(&mut self.blocked) {
                if let Some(socket) = self.sockets.get_mut(&number) {
                    // It looks again, and waits on if there is nothing.
                    socket.is_blocked = false;
                    self.proceed(number, true);
                }
            }
        }
        self.are_heard();
        check::values(&mut self.shared.lock(), &self.redis);
    }

    /// Breaks a socket. Some of what it was sent is carried out.
    fn cut(&mut self, number: u64) {
        let host = self.sockets.get(&number).map(|socket| socket.host.clone()).unwrap_or_default();
        self.shared.tell(format!("network    {host}/{number} breaks"));
        self.finish_some(number);
        self.close(number);
    }

    /// Carries out some of the commands that a socket was sent; their replies are lost.
    fn finish_some(&mut self, number: u64) {
        let pending: usize = self.sockets.get(&number).map_or(0, |socket| {
            if socket.is_connected && !socket.is_blocked {
                socket.queue.iter().map(|batch| batch.commands.len()).sum()
            } else {
                0
            }
        });
        if let Some(socket) = self.sockets.get_mut(&number) {
            socket.is_mute = true;
        }
        let carried_out = self.shared.lock().random.below(pending + 1);
        for _ in 0..carried_out {
            self.carry_out(number);
        }
    }

    /// Ends a socket: what is pending fails.
    fn close(&mut self, number: u64) {
        let Some(socket) = self.sockets.remove(&number) else { return };
        self.blocked.remove(&number);
        self.redis.disconnect(number);
        let is_dead = self.shared.lock().dead.contains(&socket.host);
        let waiting = std::mem::take(&mut self.never);
        for to in waiting.into_iter().filter(|to| !to.is_closed()) {
            self.never.push(to);
        }
        for to in socket.queue.into_iter().filter_map(|batch| batch.to) {
            if is_dead {
                self.never.push(to);
                continue;
            }
            let at = machine::elapsed() + self.shared.lock().way();
            self.plan(at, Event::Arrive(to, Err(io::ErrorKind::ConnectionReset.into())));
        }
        if let Some(subscription) = socket.subscription {
            subscription.reader.abort();
            self.unheard.insert(socket.host, machine::elapsed());
        }
    }

    /// Checks that workers whose subscription broke have another one soon.
    fn are_heard(&mut self) {
        let late = |since: &Duration| machine::elapsed() > *since + RESUBSCRIBED;
        let Some((host, since)) = self.unheard.iter().find(|(_, since)| late(since)) else { return };
        let (host, since) = (host.clone(), *since);
        self.unheard.remove(&host);
        let has_another = self.sockets.values().any(|socket| socket.host == host && socket.subscription.is_some());
        let mut world = self.shared.lock();
        // One that starts tries its rights with subscriptions, and waits for longer and longer while that fails.
        let is_well = world.started.contains(&host) && !world.dead.contains(&host) && !world.stopping.contains(&host);
        if !has_another && is_well && world.plan.is_quick() {
            world.violated(check::HEARS, format!("{host} has none since {:.3}", since.as_secs_f64()), &host);
        }
    }

    /// Breaks all sockets of a host, or of all hosts.
    pub(crate) fn cut_all(&mut self, host: Option<&str>) {
        let of = |socket: &Socket| socket.is_connected && host.is_none_or(|host| socket.host == host);
        let all: Vec<u64> = self.sockets.iter().filter(|(_, socket)| of(socket)).map(|(number, _)| *number).collect();
        for number in all {
            self.finish_some(number);
            self.close(number);
        }
    }

    /// Stops Redis, which is there again after this time.
    pub(crate) fn take_down(&mut self, time: Duration) {
        self.cut_all(None);
        self.redis.is_up = false;
        self.plan(machine::elapsed() + time, Event::Up);
    }

    fn come_up(&mut self) {
        self.shared.tell("redis      is there again");
        self.redis.is_up = true;
        // Clients that could not reach it wait for longer and longer before they try again.
        self.unheard.clear();
        // Clients that gave up meanwhile have sent nothing.
        for socket in self.sockets.values_mut() {
            socket.queue.retain(|batch| batch.to.as_ref().is_none_or(|to| !to.is_closed()));
        }
        let waiting: Vec<u64> =
            self.sockets.iter().filter(|(_, socket)| !socket.is_connected).map(|(number, _)| *number).collect();
        for number in waiting {
            let wait = self.shared.lock().random.within(0..=RECONNECT);
            if let Some(socket) = self.sockets.get_mut(&number) {
                socket.is_connected = true;
                socket.is_planned = true;
            }
            self.plan(machine::elapsed() + Duration::from_millis(wait), Event::Step(number));
        }
    }

    /// Carries out a command of the simulator's own.
    pub(crate) fn command(&mut self, words: &[&str]) {
        let words: Vec<Word> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        self.redis.execute(&self.shared, "simulator", 0, &words);
        self.after(&words);
    }
}

impl World {
    /// Returns the time of a command's or a reply's way.
    fn way(&mut self) -> Duration {
        let plan = &self.plan;
        let (usual, slow, stalled) = (plan.latency, plan.slow, plan.stalled);
        Duration::from_millis(match () {
            () if self.is_quiet => self.random.within(0..=1),
            () if self.random.chance(stalled) => self.random.within(1_000..=7_000),
            () if self.random.chance(slow) => self.random.within(5..=400),
            () => self.random.within(0..=usual),
        })
    }

    /// Decides whether a socket breaks or falls silent.
    fn breaks(&mut self) -> (bool, bool) {
        let (cut, mute) = (self.plan.cut, self.plan.mute);
        (!self.is_quiet && self.random.chance(cut), !self.is_quiet && self.random.chance(mute))
    }
}

/// Takes `BLOCK` and its time out of a command.
fn take_block(words: &mut Vec<Word>) -> Option<Duration> {
    let at = words.iter().position(|word| word == b"BLOCK")?;
    let time = std::str::from_utf8(words.get(at + 1)?).ok()?.parse().ok()?;
    words.drain(at..at + 2);
    Some(Duration::from_millis(time))
}

async fn write(mut stream: WriteHalf<DuplexStream>, mut pushes: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(bytes) = pushes.recv().await {
        if stream.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn read(number: u64, mut stream: ReadHalf<DuplexStream>, words: mpsc::UnboundedSender<Words>) {
    let mut bytes = Vec::new();
    while let Ok(1..) = stream.read_buf(&mut bytes).await {
        while let Some((command, length)) = resp::command(&bytes) {
            bytes.drain(..length);
            let _ = words.send((number, Some(command)));
        }
    }
    let _ = words.send((number, None));
}
