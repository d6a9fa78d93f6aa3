//! The agent as an X client: whether a display answers, and what it shows.

use std::sync::Arc;
use std::time::Duration;

use image::RgbImage;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use x11rb::protocol::xproto::{
    AtomEnum, GetGeometryRequest, GetImageRequest, GetPropertyRequest, ImageFormat, ImageOrder, InternAtomRequest,
    Setup, Visualtype,
};

use super::client::{Client, Problem};
use super::record::Screen;

/// Longest visit to a display that only asks a question.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest time for taking a picture, with the wait for its turn.
const PICTURE_TIMEOUT: Duration = Duration::from_secs(15);
/// Most pixels of all pictures that are being taken, and so of one: 192 MiB.
/// The owner of a screen may make it as large as X allows.
const PIXELS_MAX: u32 = 8192 * 8192;
/// Most pixels fetched at a time.
const STRIP_PIXELS: u32 = 1024 * 1024;

/// Room for the pixels of pictures.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(PIXELS_MAX as usize)))
    }
}

impl Screen {
    /// Whether the X server answers.
    pub(super) async fn answers(&self) -> Result<(), Problem> {
        within(ASK_TIMEOUT, Client::connect(self)).await.map(drop)
    }

    /// Whether a window manager says that it manages the screen.
    pub(super) async fn is_managed(&self) -> Result<bool, Problem> {
        let asked = async {
            let mut client = Client::connect(self).await?;
            let name = b"_NET_SUPPORTING_WM_CHECK"[..].into();
            let property = client.ask(InternAtomRequest { only_if_exists: true, name }, 0).await?.atom;
            if property == x11rb::NONE {
                return Ok(false);
            }
            let window = root_of(client.setup())?;
            let type_ = AtomEnum::WINDOW.into();
            let request = GetPropertyRequest { delete: false, window, property, type_, long_offset: 0, long_length: 1 };
            Ok(client.ask(request, 4).await?.value_len > 0)
        };
        within(ASK_TIMEOUT, asked).await
    }

    /// What the screen shows, with the room that its pixels take up.
    pub(super) async fn picture(&self, room: &Room) -> Result<(RgbImage, OwnedSemaphorePermit), Problem> {
        within(PICTURE_TIMEOUT, picture(self, room)).await
    }
}

async fn within<T>(limit: Duration, visit: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
    timeout(limit, visit).await.unwrap_or(Err(Problem::Slow(limit.as_secs())))
}

fn root_of(setup: &Setup) -> Result<u32, Problem> {
    setup.roots.first().map(|screen| screen.root).ok_or(Problem::Nonsense("a greeting without a screen"))
}

async fn picture(screen: &Screen, room: &Room) -> Result<(RgbImage, OwnedSemaphorePermit), Problem> {
    const TOO_FEW: Problem = Problem::Nonsense("too few pixels");
    let mut client = Client::connect(screen).await?;
    let drawable = root_of(client.setup())?;
    // The screen may have been resized since the connection was set up.
    let size = client.ask(GetGeometryRequest { drawable }, 0).await?;
    let (width, height) = (size.width, size.height);
    let count = u32::from(width) * u32::from(height);
    if !(1..=PIXELS_MAX).contains(&count) {
        return Err(Problem::TooLarge { width, height });
    }
    // The semaphore is never closed.
    let taken = Arc::clone(&room.0).acquire_many_owned(count).await.map_err(|_| Problem::TooLarge { width, height })?;
    let mut pixels = Vec::new();
    let mut row = 0;
    while row < height {
        let rows = u16::try_from(STRIP_PIXELS / u32::from(width)).unwrap_or(u16::MAX).clamp(1, height - row);
        let y = i16::try_from(row).map_err(|_| Problem::TooLarge { width, height })?;
        let request = GetImageRequest {
            format: ImageFormat::Z_PIXMAP,
            drawable,
            x: 0,
            y,
            width,
            height: rows,
            plane_mask: u32::MAX,
        };
        // A pixel has at most four bytes, and a row is padded by less than 32.
        let bytes_max = usize::from(rows) * (usize::from(width) * 4 + 32);
        let strip = client.ask(request, bytes_max).await?;
        let layout = Layout::of(client.setup(), strip.depth, strip.visual)
            .ok_or(Problem::Nonsense("pixels in an unknown format"))?;
        layout.append_rgb(&strip.data, width, rows, &mut pixels).ok_or(TOO_FEW)?;
        row += rows;
    }
    let image = RgbImage::from_raw(width.into(), height.into(), pixels).ok_or(TOO_FEW)?;
    Ok((image, taken))
}

/// How pixels lie in memory.
#[derive(Debug, Clone, Copy)]
struct Layout {
    bits_per_pixel: usize,
    scanline_pad_bits: usize,
    high_byte_first: bool,
    /// Bits of red, green and blue.
    masks: [u32; 3],
}

impl Layout {
    fn of(setup: &Setup, depth: u8, visual: u32) -> Option<Self> {
        let format = setup.pixmap_formats.iter().find(|format| format.depth == depth)?;
        let root = setup.roots.first()?;
        let visuals = || root.allowed_depths.iter().flat_map(|depth| &depth.visuals);
        let by_id = |id: u32| visuals().find(move |found: &&Visualtype| found.visual_id == id);
        // The strip of a root window names its visual; some servers name none.
        let visual = by_id(visual).or_else(|| by_id(root.root_visual))?;
        matches!(format.bits_per_pixel, 8 | 16 | 24 | 32).then_some(Self {
            bits_per_pixel: format.bits_per_pixel.into(),
            scanline_pad_bits: format.scanline_pad.into(),
            high_byte_first: setup.image_byte_order == ImageOrder::MSB_FIRST,
            masks: [visual.red_mask, visual.green_mask, visual.blue_mask],
        })
    }

    /// Adds rows as red, green, blue bytes; `None` when `data` is too short.
    fn append_rgb(&self, data: &[u8], width: u16, rows: u16, pixels: &mut Vec<u8>) -> Option<()> {
        let (width, pad) = (usize::from(width), self.scanline_pad_bits.max(8));
        let stride = (width * self.bits_per_pixel).div_ceil(pad) * pad / 8;
        let bytes_per_pixel = self.bits_per_pixel / 8;
        for row in 0..usize::from(rows) {
            let line = data.get(row * stride..)?.get(..width * bytes_per_pixel)?;
            for pixel in line.chunks_exact(bytes_per_pixel) {
                let add = |value: u32, byte: &u8| (value << 8) | u32::from(*byte);
                let value =
                    if self.high_byte_first { pixel.iter().fold(0, add) } else { pixel.iter().rev().fold(0, add) };
                pixels.extend(self.masks.map(|mask| channel(value, mask)));
            }
        }
        Some(())
    }
}

/// The bits under a mask, stretched to a byte.
fn channel(value: u32, mask: u32) -> u8 {
    if mask == 0 {
        return 0;
    }
    let largest = u64::from(mask >> mask.trailing_zeros());
    let level = u64::from((value & mask) >> mask.trailing_zeros());
    u8::try_from(level * 255 / largest).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RGB888: [u32; 3] = [0x00FF_0000, 0x0000_FF00, 0x0000_00FF];

    fn rgb(layout: Layout, data: &[u8], width: u16, rows: u16) -> Option<Vec<u8>> {
        let mut pixels = Vec::new();
        layout.append_rgb(data, width, rows, &mut pixels).map(|()| pixels)
    }

    #[test]
    fn both_byte_orders_give_the_same_colour() {
        let layout = Layout { bits_per_pixel: 32, scanline_pad_bits: 32, high_byte_first: false, masks: RGB888 };
        assert_eq!(rgb(layout, &[3, 2, 1, 0], 1, 1), Some(vec![1, 2, 3]));
        let layout = Layout { high_byte_first: true, ..layout };
        assert_eq!(rgb(layout, &[0, 1, 2, 3], 1, 1), Some(vec![1, 2, 3]));
    }

    #[test]
    fn rows_are_padded_and_few_bits_are_stretched() {
        let masks = [0xF800, 0x07E0, 0x001F];
        let layout = Layout { bits_per_pixel: 16, scanline_pad_bits: 32, high_byte_first: false, masks };
        let data = [0xFF, 0xFF, 9, 9, 0x00, 0xF8, 9, 9];
        assert_eq!(rgb(layout, &data, 1, 2), Some(vec![255, 255, 255, 255, 0, 0]));
        assert_eq!(rgb(layout, &data[..5], 1, 2), None, "too few bytes are no picture");
    }
}
