//! Bodies without a socket.

use super::*;

#[tokio::test]
async fn small_pieces_are_joined_and_a_pause_ends_the_joining() {
    let piece = |len: usize| Some(Bytes::from(vec![1; len]));
    let mut body = RequestBody::pieces([piece(1400), piece(1400), None, piece(10), piece(GATHER), piece(5)]);
    assert_eq!(body.next().await.unwrap().unwrap().len(), 2800);
    assert_eq!(body.next().await.unwrap().unwrap().len(), 10 + GATHER);
    assert_eq!(body.next().await.unwrap().unwrap().len(), 5);
    assert_eq!(body.next().await, None);
    assert_eq!(body.next().await, None);
}

#[tokio::test]
async fn what_is_here_already_is_not_waited_for() {
    let mut body =
        RequestBody::pieces([Some(Bytes::from_static(b"whole")), None, None, Some(Bytes::from_static(b"more"))]);
    assert_eq!(body.at_once().await.unwrap(), "whole");
    assert_eq!(body.at_once().await, None, "it may go on, or never end");
    assert_eq!(body.at_once().await.unwrap(), "more");
    assert_eq!(body.at_once().await, None);
}

#[tokio::test]
async fn a_flow_that_is_not_finished_is_cut_off() {
    let (out, mut body) = ResponseBody::flow();
    out.0.send(Piece::Bytes(Bytes::from_static(b"a"))).await.unwrap();
    let mut frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
    assert!(frame.unwrap().is_ok());
    drop(out);
    frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
    assert!(frame.unwrap().is_err());
}

#[tokio::test]
async fn a_peer_that_takes_nothing_is_cut_where_its_stream_can_not_be() {
    use crate::clock::Clock;
    for (transport, cuts) in [(Transport::H1, true), (Transport::H2, true), (Transport::H3, false)] {
        let clock = Clock::at_unix_ms(0);
        let ctx = crate::ingress::tests::harness::context(clock.clone(), transport);
        let idle = ctx.limits.idle_timeout;
        let (out, _body) = ResponseBody::flow();
        let sending = tokio::spawn({
            let ctx = ctx.clone();
            async move { out.send(&ctx, Bytes::from(vec![0; 3 * PIECE])).await }
        });
        while !sending.is_finished() {
            tokio::task::yield_now().await;
            clock.advance(idle / 10);
        }
        assert_eq!(sending.await.unwrap(), Err(Stopped::TooSlow));
        assert_eq!(ctx.conn.cut.is_cancelled(), cuts, "{transport:?}");
    }
}

#[tokio::test]
async fn an_answer_that_waits_for_the_requests_body_ends_as_that_does() {
    for (read, ends) in [(Some(true), true), (Some(false), false), (None, false)] {
        let (done, over) = oneshot::channel();
        let mut body = ResponseBody::whole("a").until(Some(over));
        assert!(poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().is_ok());
        let mut end = std::pin::pin!(poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)));
        assert!(futures_util::poll!(&mut end).is_pending());
        match read {
            Some(read) => done.send(read).unwrap(),
            None => drop(done),
        }
        assert_eq!(end.await.is_none(), ends);
    }
}
