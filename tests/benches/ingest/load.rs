//! A load generator that leaves the cores to what it measures: raw sockets that are kept alive,
//! requests made beforehand, one thread, no pipelining.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What one run showed.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    pub rate: f64,
    /// Latencies in nanoseconds, sorted.
    latencies: Vec<u64>,
}

impl Measured {
    /// In milliseconds.
    pub fn quantile(&self, share: f64) -> f64 {
        let place = ((self.latencies.len() as f64 * share) as usize).min(self.latencies.len().saturating_sub(1));
        self.latencies.get(place).map_or(0.0, |ns| *ns as f64 / 1e6)
    }
}

/// Sends `requests` in turn over `connections` connections to `address` for `time`.
///
/// # Panics
/// When a request is not answered with 200: what is measured must work.
pub fn run(address: SocketAddr, requests: &Arc<Vec<Vec<u8>>>, connections: usize, time: Duration) -> Measured {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let began = Instant::now();
    let mut latencies = runtime.block_on(async {
        let client = |n| tokio::spawn(client(address, Arc::clone(requests), n, connections, began, time));
        let clients: Vec<_> = (0..connections).map(client).collect();
        let mut all = Vec::new();
        for client in clients {
            all.extend(client.await.unwrap());
        }
        all
    });
    let rate = latencies.len() as f64 / began.elapsed().as_secs_f64();
    latencies.sort_unstable();
    Measured { rate, latencies }
}

async fn client(
    address: SocketAddr,
    requests: Arc<Vec<Vec<u8>>>,
    first: usize,
    step: usize,
    began: Instant,
    time: Duration,
) -> Vec<u64> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut latencies, mut answer, mut next) = (Vec::new(), Vec::with_capacity(4096), first);
    while began.elapsed() < time {
        let sent = Instant::now();
        stream.write_all(&requests[next % requests.len()]).await.unwrap();
        next += step;
        read_answer(&mut stream, &mut answer).await;
        latencies.push(sent.elapsed().as_nanos() as u64);
    }
    latencies
}

/// Reads one answer: its head, and as many bytes as that announces, or chunks up to the last.
async fn read_answer(stream: &mut TcpStream, answer: &mut Vec<u8>) {
    answer.clear();
    loop {
        assert!(stream.read_buf(answer).await.unwrap() > 0, "the server hung up");
        let Some(head) = answer.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(answer));
        let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        let complete = match length {
            Some(length) => answer.len() >= head + 4 + length,
            None => answer.ends_with(b"0\r\n\r\n"),
        };
        if complete {
            return;
        }
    }
}
