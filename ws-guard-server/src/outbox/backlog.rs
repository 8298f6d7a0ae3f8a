//! Backlog of messages whose encoding exceeds a turn, and of those after them.

use std::{collections::VecDeque, task::Poll};

use bytes::Bytes;

use super::queue::Payload;
use crate::{
    coding::{Coding, Sealing},
    protocol::{
        Message,
        deflate::{Deflater, Deflating},
    },
    turn::Turn,
};

/// Minimum length of messages that compression can shorten.
const WORTH_COMPRESSING: usize = 64;

/// Agreed encoding of outgoing messages: at most one of the two.
#[derive(Debug, Default)]
pub struct Treatment<'a> {
    pub deflater: Option<&'a mut Deflater>,
    pub coding: Option<&'a mut Coding>,
}

/// Encoded message.
#[derive(Debug)]
pub struct Treated {
    pub message: Message,
    pub payload: Payload,
    /// `true` if compressed by permessage-deflate.
    pub compressed: bool,
}

impl Treatment<'_> {
    /// Borrow the treatment once more.
    pub fn again(&mut self) -> Treatment<'_> {
        Treatment { deflater: self.deflater.as_deref_mut(), coding: self.coding.as_deref_mut() }
    }

    /// Check whether nothing can be sent yet.
    pub fn is_mute(&self) -> bool {
        self.coding.as_ref().is_some_and(|coding| coding.is_mute())
    }

    /// Check whether this message is changed.
    pub fn applies(&self, message: &Message) -> bool {
        match (&self.coding, &self.deflater) {
            (Some(coding), _) => coding.changes(message.kind),
            (None, Some(_)) => message.payload.len() >= WORTH_COMPRESSING,
            (None, None) => false,
        }
    }
}

/// Waiting message, and the progress of its encoding.
#[derive(Debug)]
struct Waiting {
    message: Message,
    payload: Payload,
    deflating: Deflating,
    sealing: Sealing,
}

impl Waiting {
    /// Continue; pending when the turn is over, and empty where nothing can be sent.
    fn go_on(&mut self, treatment: &mut Treatment<'_>, turn: &mut Turn) -> Poll<Option<Treated>> {
        let message = &self.message;
        if !treatment.applies(message) {
            return Poll::Ready(Some(self.as_it_is()));
        }
        if let Some(coding) = &mut treatment.coding {
            let sealed = self.sealing.go_on(coding, message, turn);
            let own = |message| Treated { message, payload: Payload::Own, compressed: false };
            return sealed.map(|sealed| sealed.map(own));
        }
        let Some(deflater) = &mut treatment.deflater else {
            return Poll::Ready(Some(self.as_it_is()));
        };
        match deflater.go_on(&message.payload, &mut self.deflating, turn) {
            None => Poll::Pending,
            Some(false) => Poll::Ready(Some(self.as_it_is())),
            Some(true) => {
                let mut bytes = std::mem::take(&mut self.deflating).out();
                bytes.shrink_to_fit();
                let message = Message { payload: bytes.into(), ..*message };
                Poll::Ready(Some(Treated { message, payload: Payload::Own, compressed: true }))
            }
        }
    }

    fn as_it_is(&mut self) -> Treated {
        let payload: Bytes = std::mem::take(&mut self.message.payload);
        let message = Message { payload, ..self.message };
        Treated { message, payload: self.payload, compressed: false }
    }

    fn held(&self) -> usize {
        let own = if self.payload == Payload::Own { self.message.payload.len() } else { 0 };
        own + self.deflating.held() + self.sealing.held()
    }
}

/// Waiting messages in order.
#[derive(Debug, Default)]
pub struct Backlog {
    messages: VecDeque<Waiting>,
    /// Code and reason of the close frame after them, which is the last.
    close: Option<(u16, Box<str>)>,
}

/// Progress of a backlog.
#[derive(Debug)]
pub enum Next {
    /// Encoded message, unless nothing can be sent.
    Message(Option<Treated>),
    Close(u16, Box<str>),
    /// End of the turn.
    TurnOver,
    Nothing,
}

impl Backlog {
    /// Append a message; nothing follows a close frame.
    pub fn push(&mut self, message: Message, payload: Payload) {
        if self.close.is_none() {
            let (deflating, sealing) = Default::default();
            self.messages.push_back(Waiting { message, payload, deflating, sealing });
        }
    }

    /// Append the close frame, after all messages.
    pub fn close(&mut self, code: u16, reason: &str) {
        self.close.get_or_insert_with(|| (code, reason.into()));
    }

    /// Work on the first message until it is done or the turn is over.
    pub fn next(&mut self, treatment: &mut Treatment<'_>, turn: &mut Turn) -> Next {
        let Some(first) = self.messages.front_mut() else {
            let close = self.close.take();
            return close.map_or(Next::Nothing, |(code, reason)| Next::Close(code, reason));
        };
        match first.go_on(treatment, turn) {
            Poll::Pending => Next::TurnOver,
            Poll::Ready(treated) => {
                self.messages.pop_front();
                Next::Message(treated)
            }
        }
    }

    /// Return the number of bytes of waiting messages.
    pub fn waiting(&self) -> usize {
        self.messages.iter().map(|waiting| waiting.message.payload.len()).sum()
    }

    /// Return the number of bytes held in memory.
    pub fn held(&self) -> usize {
        self.messages.iter().map(Waiting::held).sum()
    }
}
