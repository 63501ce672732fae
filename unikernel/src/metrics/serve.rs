//! An HTTP server as small as a scraper needs: one request a connection, one connection at a time, `GET /metrics`.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// How long a scraper may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes of a request.
const MAX_REQUEST: usize = 8 << 10;

/// Where to listen: nobody but this machine is ever served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `unix:PATH`
    Unix(PathBuf),
    /// `127.0.0.1:PORT` or `[::1]:PORT`
    Loopback(SocketAddr),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Listen, String> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Listen::Unix(path.into()));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Listen::Loopback(address)),
            _ => Err("metrics go to unix:PATH or 127.0.0.1:PORT, and nowhere else".into()),
        }
    }
}

/// A socket that listens.
#[derive(Debug)]
pub enum Listener {
    /// On a path.
    Unix(UnixListener),
    /// On a port.
    Loopback(TcpListener),
}

impl Listener {
    /// Listens; a socket that somebody left behind gives way.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn bind(listen: &Listen) -> io::Result<Listener> {
        match listen {
            Listen::Unix(path) => {
                let stale = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
                if stale && std::os::unix::net::UnixStream::connect(path).is_err() {
                    std::fs::remove_file(path)?;
                }
                UnixListener::bind(path).map(Listener::Unix)
            }
            Listen::Loopback(address) => TcpListener::bind(address).map(Listener::Loopback),
        }
    }

    /// Answers one scraper after the other.
    ///
    /// # Errors
    /// When no connection can be accepted any more.
    pub fn serve(&self, mut text: impl FnMut() -> Result<String, String>) -> io::Result<()> {
        loop {
            // What a scraper does wrong is its own business.
            match self {
                Listener::Unix(listener) => {
                    let (mut stream, _) = listener.accept()?;
                    let set = stream.set_read_timeout(Some(PATIENCE)).and(stream.set_write_timeout(Some(PATIENCE)));
                    let _ = set.and_then(|()| answer(&mut stream, &mut text));
                }
                Listener::Loopback(listener) => {
                    let (mut stream, _) = listener.accept()?;
                    let set = stream.set_read_timeout(Some(PATIENCE)).and(stream.set_write_timeout(Some(PATIENCE)));
                    let _ = set.and_then(|()| answer(&mut stream, &mut text));
                }
            }
        }
    }
}

fn answer(stream: &mut (impl Read + Write), text: &mut impl FnMut() -> Result<String, String>) -> io::Result<()> {
    let mut request = Vec::new();
    let mut bytes = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < MAX_REQUEST {
        match stream.read(&mut bytes)? {
            0 => break,
            count => request.extend_from_slice(&bytes[..count]),
        }
    }
    let line = String::from_utf8_lossy(request.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
    let mut words = line.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split('?').next().unwrap_or_default();
    let (status, body) = match (method, path) {
        ("GET" | "HEAD", "/metrics" | "/") => match text() {
            Ok(text) => ("200 OK", text),
            Err(why) => ("503 Service Unavailable", format!("{why}\n")),
        },
        ("GET" | "HEAD", _) => ("404 Not Found", "the numbers are at /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "only GET\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    if method != "HEAD" {
        stream.write_all(body.as_bytes())?;
    }
    stream.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_served() {
        assert_eq!("unix:/run/m".parse(), Ok(Listen::Unix("/run/m".into())));
        assert!(matches!("127.0.0.1:9100".parse(), Ok(Listen::Loopback(_))));
        assert!(matches!("[::1]:9100".parse(), Ok(Listen::Loopback(_))));
        for text in ["0.0.0.0:9100", "[::]:1", "192.168.1.1:9", "unix:", "9100", "localhost:9100", ""] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
    }

    /// What is asked, then what is answered.
    struct Stream(io::Cursor<Vec<u8>>, Vec<u8>);

    impl Read for Stream {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            self.0.read(to)
        }
    }

    impl Write for Stream {
        fn write(&mut self, from: &[u8]) -> io::Result<usize> {
            self.1.write(from)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn asked(request: &[u8]) -> String {
        let mut stream = Stream(io::Cursor::new(request.to_vec()), Vec::new());
        answer(&mut stream, &mut || Ok("a 1\n".into())).unwrap();
        assert!(stream.0.position() <= MAX_REQUEST as u64 + 1024);
        String::from_utf8(stream.1).unwrap()
    }

    #[test]
    fn whatever_is_asked_there_is_one_answer() {
        let good = asked(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(
            good.starts_with("HTTP/1.1 200 OK\r\n")
                && good.ends_with("Content-Length: 4\r\nConnection: close\r\n\r\na 1\n")
        );
        assert!(asked(b"HEAD /metrics HTTP/1.0\r\n\r\n").ends_with("\r\n\r\n"));
        assert!(asked(b"GET /../etc/passwd HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
        assert!(asked(b"POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
        assert!(asked(b"").starts_with("HTTP/1.1 405"));
        assert!(asked(&[0xff; 100_000]).starts_with("HTTP/1.1 405"));
    }
}
