//! A client of HTTP/1.1 that does as little as possible: it writes a prepared request and counts the bytes of the answer.

use std::{
    io::{self, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};

/// Bytes that are read at once.
const BUFFER: usize = 256 << 10;
/// The longest that a server may send nothing.
const PATIENCE: Duration = Duration::from_secs(20);

/// The target of a client's connection: a port of this machine, with TLS or without.
#[derive(Clone)]
pub(super) struct LightTarget {
    pub(super) port: u16,
    /// `None` for plain HTTP.
    pub(super) tls: Option<Arc<ClientConfig>>,
}

/// A connection on which one request is made at a time. Its calls block.
pub(super) struct LightClient {
    stream: LightStream,
    buffer: Vec<u8>,
}

enum LightStream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, BufferedTcp>>),
}

/// Reads many TLS records with one call.
struct BufferedTcp(BufReader<TcpStream>);

impl Read for BufferedTcp {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for BufferedTcp {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.get_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.get_mut().flush()
    }
}

/// The head of an answer.
pub(super) struct AnswerHead {
    pub(super) length: u64,
    /// Bytes of the body that came with the head.
    pub(super) got: u64,
}

impl LightTarget {
    /// Opens a connection, with its handshake.
    pub(super) fn connect(&self) -> io::Result<LightClient> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let tcp = TcpStream::connect(address)?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        let stream = match &self.tls {
            None => LightStream::Plain(tcp),
            Some(config) => {
                // rustls requires a name, which is never sent: the SPIFFE ID identifies the server.
                let nameless = ServerName::from(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED));
                let mut tls = ClientConnection::new(config.clone(), nameless).map_err(io::Error::other)?;
                let mut tcp = BufferedTcp(BufReader::with_capacity(BUFFER, tcp));
                while tls.is_handshaking() {
                    tls.complete_io(&mut tcp)?;
                }
                LightStream::Tls(Box::new(StreamOwned::new(tls, tcp)))
            }
        };
        Ok(LightClient { stream, buffer: vec![0; BUFFER] })
    }
}

impl LightClient {
    /// Makes a request without a body, and reads the whole answer. Returns the bytes of its body.
    pub(super) fn get(&mut self, head: &[u8]) -> io::Result<u64> {
        let AnswerHead { length, mut got } = self.begin(head)?;
        while got < length {
            got = got.saturating_add(self.read_some()? as u64);
        }
        Ok(length)
    }

    /// Makes a request. Its body repeats this piece up to the length.
    pub(super) fn put(&mut self, head: &[u8], piece: &[u8], length: u64) -> io::Result<()> {
        self.write(head)?;
        let mut left = length;
        while left > 0 {
            let now = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
            self.write(piece.get(..now).unwrap_or_default())?;
            left = left.saturating_sub(now as u64);
        }
        let AnswerHead { length, mut got } = self.read_head()?;
        while got < length {
            got = got.saturating_add(self.read_some()? as u64);
        }
        Ok(())
    }

    /// Makes a request without a body, and reads the head of the answer.
    pub(super) fn begin(&mut self, head: &[u8]) -> io::Result<AnswerHead> {
        self.write(head)?;
        self.read_head()
    }

    /// Reads some bytes of the body. The end of the connection is an error, because the body has a length.
    pub(super) fn read_some(&mut self) -> io::Result<usize> {
        match self.read(0)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => Ok(read),
        }
    }

    fn read_head(&mut self) -> io::Result<AnswerHead> {
        let mut filled = 0;
        let end = loop {
            let read = self.read(filled)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled = filled.saturating_add(read);
            let seen = self.buffer.get(..filled).unwrap_or_default();
            if let Some(at) = seen.windows(4).position(|four| four == b"\r\n\r\n") {
                break at.saturating_add(4);
            }
        };
        let head = String::from_utf8_lossy(self.buffer.get(..end).unwrap_or_default()).into_owned();
        let status = head.split(' ').nth(1).unwrap_or_default();
        if !status.starts_with('2') {
            let body = self.buffer.get(end..filled).unwrap_or_default();
            return Err(io::Error::other(format!("it answered {status}: {}", String::from_utf8_lossy(body))));
        }
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        });
        let length = length.ok_or_else(|| io::Error::other("the answer has no length"))?;
        Ok(AnswerHead { length, got: filled.saturating_sub(end) as u64 })
    }

    /// Reads into the buffer from `from` on.
    fn read(&mut self, from: usize) -> io::Result<usize> {
        let free = self.buffer.get_mut(from..).unwrap_or_default();
        match &mut self.stream {
            LightStream::Plain(tcp) => tcp.read(free),
            LightStream::Tls(tls) => tls.read(free),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            LightStream::Plain(tcp) => tcp.write_all(bytes),
            LightStream::Tls(tls) => {
                tls.write_all(bytes)?;
                tls.flush()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A server that gives these answers on one connection, and then closes it.
    fn answering(answers: Vec<&'static str>) -> LightTarget {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut tcp, _) = listener.accept().unwrap();
            let mut request = [0; 64];
            for answer in answers {
                assert!(tcp.read(&mut request).unwrap() > 0);
                for part in answer.as_bytes().chunks(7) {
                    tcp.write_all(part).unwrap();
                }
            }
        });
        LightTarget { port, tls: None }
    }

    // The client counts the bytes of a body, uses its connection again, and notices a body that ends too early.
    #[test]
    fn bodies_are_counted_and_short_ones_noticed() {
        let ok = "HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\n\r\nhello";
        let short = "HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello";
        let mut client = answering(vec![ok, ok, short]).connect().unwrap();
        assert_eq!(client.get(b"GET /").unwrap(), 5);
        assert_eq!(client.get(b"GET /").unwrap(), 5);
        assert_eq!(client.get(b"GET /").unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let mut client =
            answering(vec!["HTTP/1.1 403 Forbidden\r\ncontent-length: 3\r\n\r\nno!"]).connect().unwrap();
        assert!(client.get(b"GET /").unwrap_err().to_string().contains("403"));
    }
}
