//! A Redis server for one unit test.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{Connection, RedisUrl};

/// A redis-server process that ends with its test.
pub(crate) struct Server {
    process: Child,
    pub(crate) url: String,
    _folder: tempfile::TempDir,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("redis.sock");
        let process = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
            .arg(&socket)
            .arg("--dir")
            .arg(folder.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("these tests need redis-server: apt-get install redis-server, or brew install redis");
        let url = format!("unix://{}", socket.display());
        let server = Self { process, url, _folder: folder };
        for _ in 0..400 {
            if redis::Client::open(server.url.as_str()).unwrap().get_multiplexed_async_connection().await.is_ok() {
                return server;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("redis-server does not answer");
    }

    pub(crate) async fn connect(&self) -> Connection {
        RedisUrl::parse(&self.url, None).unwrap().manager(Duration::from_secs(5)).await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
