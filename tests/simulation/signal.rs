//! A value that many wait for, woken in the order in which they began to wait: the same seed gives the same history.
//!
//! `tokio::sync::watch` wakes several receivers in a random order; it is not used in the simulated outside.

use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Notify,
}

struct State<T> {
    value: T,
    version: u64,
    is_final: bool,
}

/// Sets the value. The last one that is dropped leaves it final.
pub struct Sender<T>(Arc<Shared<T>>);

/// Waits for changes.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

/// The value will not change any more.
#[derive(Debug)]
pub struct Final;

pub fn channel<T: Copy>(value: T) -> (Sender<T>, Receiver<T>) {
    let state = State { value, version: 0, is_final: false };
    let shared = Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() });
    (Sender(shared.clone()), Receiver { shared, seen: 0 })
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect("nothing panics while it is held")
    }
}

impl<T: Copy> Sender<T> {
    pub fn send_replace(&self, value: T) {
        {
            let mut state = self.0.lock();
            state.value = value;
            state.version += 1;
        }
        self.0.changed.notify_waiters();
    }

    pub fn get(&self) -> T {
        self.0.lock().value
    }

    pub fn subscribe(&self) -> Receiver<T> {
        Receiver { shared: self.0.clone(), seen: self.0.lock().version }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.lock().is_final = true;
        self.0.changed.notify_waiters();
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), seen: self.seen }
    }
}

impl<T: Copy> Receiver<T> {
    pub fn get(&self) -> T {
        self.shared.lock().value
    }

    pub fn get_and_update(&mut self) -> T {
        let state = self.shared.lock();
        self.seen = state.version;
        state.value
    }

    pub fn is_final(&self) -> bool {
        self.shared.lock().is_final
    }

    pub async fn changed(&mut self) -> Result<(), Final> {
        loop {
            let notified = self.shared.changed.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            {
                let state = self.shared.lock();
                if state.version != self.seen {
                    self.seen = state.version;
                    return Ok(());
                }
                if state.is_final {
                    return Err(Final);
                }
            }
            notified.await;
        }
    }

    pub async fn wait_for(&mut self, wanted: impl Fn(T) -> bool) -> Result<T, Final> {
        loop {
            let value = self.get_and_update();
            if wanted(value) {
                return Ok(value);
            }
            self.changed().await?;
        }
    }
}
