//! How much IKE SAs and Child SAs may carry before they are replaced.

use super::validate::Check;
use evergate_ike::config::{IkeVolume, Volume};
use toml::Spanned;

/// What is said of an IKE SA: when it is rekeyed, authenticated again, deleted; and the spread.
type OfIke = (Option<u64>, Option<u64>, Option<u64>, Option<Spanned<u64>>);

impl Check<'_> {
    /// How much the Child SAs of an IKE SA may carry together, in `unit`; the defaults are as those of times.
    pub(super) fn ike_volume(&mut self, unit: &str, given: OfIke) -> IkeVolume {
        let (rekey, reauth, over, rand) = given;
        let (rekey, reauth) = (rekey.unwrap_or_default(), reauth.unwrap_or_default());
        let longer = rekey.max(reauth);
        if let Some(rand) = &rand
            && *rand.get_ref() > longer
        {
            let what =
                format!("rand_{unit} is more than rekey_{unit} and reauth_{unit}, expected less");
            self.error(rand.span(), what);
        }
        let over = over.unwrap_or(longer / 10);
        IkeVolume {
            rekey,
            reauth,
            over,
            rand: rand.map_or(over.min(longer), Spanned::into_inner),
        }
    }

    /// How much a Child SA may carry, in `unit`; the defaults are as those of times.
    pub(super) fn volume(
        &mut self,
        unit: &str,
        rekey: Option<Spanned<u64>>,
        life: Option<Spanned<u64>>,
        rand: Option<Spanned<u64>>,
    ) -> Volume {
        let rekey = rekey.map_or(0, Spanned::into_inner);
        let default = rekey.saturating_add(rekey / 10);
        if let Some(life) = &life
            && (1..=rekey).contains(life.get_ref())
        {
            let what = format!(
                "life_{unit} is not more than rekey_{unit}, expected something left to rekey"
            );
            self.error(life.span(), what);
        }
        let life = life.map_or(default, Spanned::into_inner);
        if let Some(rand) = &rand
            && *rand.get_ref() > rekey
        {
            let what = format!("rand_{unit} is more than rekey_{unit}, expected less");
            self.error(rand.span(), what);
        }
        let rand = rand.map_or(life.saturating_sub(rekey).min(rekey), Spanned::into_inner);
        Volume { rekey, life, rand }
    }
}
