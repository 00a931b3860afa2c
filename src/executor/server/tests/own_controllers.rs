// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Controllers of ours.

use super::*;
use crate::completion::wait;
use crate::error::Error;
use crate::transport::{Stream, Transport};

/// A server, and a controller of ours that is connected to it.
fn connected() -> (Stream, JoinHandle<Result<()>>) {
    let (here, there) = UnixStream::pair().unwrap();
    let options = Options::default();
    let executor = std::thread::spawn(move || serve_socket(there, &options));
    (Stream::connect(Arc::new(here.into())).unwrap(), executor)
}

#[test]
fn what_is_no_answer_but_an_error_is_told_to_controllers_of_ours() {
    fn fails(_: &[u8]) -> Answer {
        Err("out of luck".to_owned())
    }
    let (stream, executor) = connected();
    let ask = |function| crate::transport::call(&stream, function, vec![1]);
    for (function, text) in [
        (0, "no function is at address 0"),
        (wrapper_address(fails), "out of luck"),
        (stream.symbol(READ).unwrap(), "deserialize"),
    ] {
        let error = ask(function).unwrap_err();
        assert_eq!(error.status(), Status::MapperFailed);
        assert!(error.message().contains(text), "{error}");
    }
    drop(stream);
    executor.join().unwrap().unwrap();
}

/// A socket that was sent along with a call, and what the executor knows it by.
fn send_along(stream: &Stream) -> (OwnedFd, u64) {
    let (here, there) = sys::socket::packet_pair().unwrap();
    let cookie = sys::socket::cookie(&there).unwrap();
    assert!(stream.passes_descriptors());
    // Any call will do.
    let answer = wait(|done| {
        stream.start_with(0, vec![], there, 100, done);
    });
    assert_eq!(answer.unwrap_err().status(), Status::MapperFailed);
    (here, cookie)
}

#[test]
fn a_socket_that_was_sent_along_serves_once_and_ends_with_the_session() {
    use crate::executor::service::{Function as ServiceFunction, Service, call as call_service};
    use crate::wire::service::{Attach, Reply};
    use crate::wire::sps::Bytes;

    let (stream, executor) = connected();
    let (socket, cookie) = send_along(&stream);

    let service = Service::new();
    let session = crate::executor::service::opened(&service);
    let attach = |cookie: u64| {
        let mut message = to_bytes(&session);
        let token = Bytes(b"token");
        Attach::Shared { cookie, token }.encode(&mut message);
        let answer = call_service(ServiceFunction::Attach, &message, Vec::new()).unwrap();
        let Reply::<()>(reply) = from_bytes(&answer).unwrap();
        reply.map_err(Error::from)
    };
    // No neighbour's number: other tests have sockets too.
    let refused = attach(u64::MAX).unwrap_err();
    assert_eq!(refused.status(), Status::InvalidArgument);
    assert!(refused.message().contains("not sent along"), "{refused}");
    attach(cookie).unwrap();
    let mut token = [0; 8];
    assert_eq!(sys::socket::receive(&socket, &mut token).unwrap().size, 5);
    assert_eq!(&token[..5], b"token");
    assert!(attach(cookie).is_err());
    drop(service);
    // The session has gone, and its end of the socket with it.
    assert_eq!(sys::socket::receive(&socket, &mut [0]).unwrap().size, 0);

    drop(stream);
    executor.join().unwrap().unwrap();
}

#[test]
fn what_no_session_took_goes_with_the_connection_or_when_it_is_too_much() {
    let (stream, executor) = connected();
    let (first, _) = send_along(&stream);
    let others: Vec<OwnedFd> = (0..64).map(|_| send_along(&stream).0).collect();
    assert_eq!(sys::socket::receive(&first, &mut [0]).unwrap().size, 0);
    let waiting = sys::socket::receive_now(&others[0], &mut [0]).map(drop);
    assert_eq!(waiting.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    drop(stream);
    executor.join().unwrap().unwrap();
    for socket in others {
        assert_eq!(sys::socket::receive(&socket, &mut [0]).unwrap().size, 0);
    }
}

#[test]
fn calls_come_whole_whatever_is_sent_along() {
    let (stream, executor) = connected();
    fn size(args: &[u8]) -> Answer {
        Ok(args.len().to_le_bytes().to_vec())
    }
    for length in [0, 1, 4000, 4096, 5000, 100_000, 1 << 20] {
        let (here, there) = sys::socket::packet_pair().unwrap();
        let answer = wait(|done| {
            stream.start_with(wrapper_address(size), vec![7; length], there, 100, done);
        });
        assert_eq!(answer.unwrap(), length.to_le_bytes());
        drop(here);
    }
    drop(stream);
    executor.join().unwrap().unwrap();
}
